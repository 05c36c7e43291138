"""Image files of any kind, decoded without losing what is in them: depth, gray, alpha, profile, EXIF, resolution, frames."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import struct
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageCms, ImageOps, ImageSequence, UnidentifiedImageError

from ..errors import UserError
from .rows import BAND, Rows, rows_of

SUFFIXES = frozenset({
    ".png", ".apng", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jp2", ".tga",
    ".ppm", ".pgm", ".pbm",
})  # fmt: skip
"""Of files that are taken for images when a folder is searched; a file that is named may have any."""

MOST_MEGAPIXELS = 300
"""Of an image that is read without being told that it may have more."""

_ORIENTATION, _EXIF_WIDTH, _EXIF_HEIGHT, _EXIF_IFD, _KIND_OF_PAGE, _PROFILE = 0x0112, 0xA002, 0xA003, 0x8769, 254, 34675
_GRAY_AND_ALPHA = 4  # of a PNG's colour types
_COLOR_CHUNKS = (b"gAMA", b"cHRM", b"sRGB", b"cICP")
_DEEP = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")
_OPENING = threading.Lock()  # Pillow's limit is global


@dataclass(frozen=True)
class Metadata:
    """What an image says of itself beside its pixels.

    Attributes:
        icc: colour profile.
        exif: EXIF block, with the orientation reset.
        xmp: XMP packet.
        dpi: pixels per inch, across and down.
        texts: of a PNG, by keyword.
        color_chunks: of a PNG, what says how its numbers are meant without a profile (gAMA, cHRM, sRGB, cICP).
    """

    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None
    texts: tuple[tuple[str, str], ...] = ()
    color_chunks: tuple[tuple[bytes, bytes], ...] = ()


@dataclass(frozen=True)
class Frame:
    """One picture of a file.

    Attributes:
        rows: its pixels.
        duration: milliseconds that it is shown, in an animation.
    """

    rows: Rows
    duration: float = 0.0


@dataclass(frozen=True)
class Picture:
    """A decoded image file.

    Attributes:
        format: of the file, as Pillow calls it (``PNG``, ``JPEG``, ...).
        frames: one, or those of an animation or the pages of a TIFF.
        metadata: what is kept.
        loop: how often an animation runs, 0: for ever; None: once.
        notes: what could not be kept, in sentences.
    """

    format: str
    frames: tuple[Frame, ...]
    metadata: Metadata = Metadata()
    loop: int | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def rows(self) -> Rows:
        """The pixels of the first picture."""
        return self.frames[0].rows

    @property
    def is_animated(self) -> bool:
        """Whether there are frames with a timing."""
        return len(self.frames) > 1 and self.format != "TIFF"


def open_picture(source: Path | bytes, most_megapixels: float = MOST_MEGAPIXELS) -> Picture:
    """Decode an image file, or one in memory, by its content, whatever its name ends in.

    The EXIF orientation is applied; CMYK and Lab become sRGB; palettes become colours; 1-bit and gray stay gray; 16 bits stay 16 bits, also
    of RGB, and 32-bit or float gray in a known range becomes 16 bits.

    Args:
        source: a path, or the content of a file.
        most_megapixels: of all frames together; more is refused before anything is decoded.

    Raises:
        UserError: names the file and the reason (missing, not an image, cut off, too large, ...).
    """
    name = "standard input" if isinstance(source, bytes) else str(source)
    _register_heif()
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(_warnings_as_before())
            file = io.BytesIO(source) if isinstance(source, bytes) else stack.enter_context(source.open("rb"))
            try:
                with _unlimited():
                    image = stack.enter_context(Image.open(file))
            except UnidentifiedImageError:
                file.seek(0)
                if file.read(2) not in (b"II", b"MM"):
                    raise
                return _unusual_tiff(file, name, most_megapixels)
            _check_size(image.size, getattr(image, "n_frames", 1), name, most_megapixels)
            return _decoded(image, file)
    except UserError as error:
        raise UserError(str(error) if str(error).startswith(name) else f"{name}: {error}") from error
    except FileNotFoundError as error:
        raise UserError(f"{name}: there is no such file.") from error
    except IsADirectoryError as error:
        raise UserError(f"{name} is a folder.") from error
    except MemoryError as error:
        raise UserError(f"{name}: not enough memory to decode it.") from error
    except Exception as error:  # decoders raise whatever they like
        reason = str(error).replace(f" '{name}'", "").replace(name, "the file") or type(error).__name__
        reason = "no image format that is known" if "BytesIO" in reason or "BufferedReader" in reason else reason
        raise UserError(f"{name}: cannot be read as an image ({' '.join(reason.split())[:200]}).") from error


def size_in_header(path: Path) -> tuple[int, int] | None:
    """Height and width as a file's header has them, without decoding; None if it cannot be read."""
    _register_heif()
    try:
        with _warnings_as_before(), _unlimited(), Image.open(path) as image:
            return image.size[::-1]
    except Exception:
        return None


def picture_of(image: Image.Image) -> Picture:
    """An image that Pillow has decoded already; only the frame it shows.

    Raises:
        UserError: its mode is one that means no picture.
    """
    turned = ImageOps.exif_transpose(image)
    return Picture(image.format or "PNG", (Frame(_rows(turned)),), _metadata(turned))


def _decoded(image: Image.Image, file: BinaryIO) -> Picture:
    count = getattr(image, "n_frames", 1)
    kind = image.format or "PNG"
    if count > 1 and kind == "TIFF":
        return _pages(image, file, count)
    if count > 1 and kind in ("GIF", "WEBP", "PNG", "AVIF"):
        return _animation(image, count)
    deep = _deep_pixels(image, file)
    image.load()
    notes: tuple[str, ...] = ()
    if count > 1:  # a phone's HEIC or MPO with a second view
        notes = (f"of its {count} pictures the first is upscaled.",)
    if deep is not None:
        rows = rows_of(_transposed(deep, image))
    ImageOps.exif_transpose(image, in_place=True)
    if deep is None:
        rows = _rows(image)
    return Picture(kind, (Frame(rows),), _metadata(image, file), notes=notes)


def _animation(image: Image.Image, count: int) -> Picture:
    frames = []
    for frame in ImageSequence.Iterator(image):
        still = frame.convert(
            "RGBA" if _has_transparency(frame) or (frames and frames[0].rows.channels == 4) else frame.mode
        )
        frames.append(Frame(_rows(still), float(frame.info.get("duration", 0))))
    most = max(frame.rows.channels for frame in frames)
    same = tuple(replace(frame, rows=_with_channels(frame.rows, most)) for frame in frames)
    if "loop" in image.info:
        loop = int(image.info["loop"])
    else:
        loop = None if image.format == "GIF" else 0
    return Picture(image.format, same, _metadata(image), loop)


def _pages(image: Image.Image, file: BinaryIO, count: int) -> Picture:
    pages = []
    for index in range(count):
        image.seek(index)
        if pages and image.tag_v2.get(_KIND_OF_PAGE, 0) & 1:  # the same picture, smaller
            continue
        deep = _deep_pixels(image, file, index)
        image.load()
        pages.append(Frame(_rows(image.copy()) if deep is None else rows_of(deep)))
    image.seek(0)
    return Picture("TIFF", tuple(pages), _metadata(image))


def _rows(image: Image.Image) -> Rows:
    """The pixels of a decoded image, converted as its rows are asked for."""
    if image.mode in _DEEP:
        return rows_of(_sixteen_bits(image)[:, :, None])
    if image.mode == "LAB":
        image = _by_profile(image, ImageCms.createProfile("LAB"))
    elif image.mode == "CMYK" and image.info.get("icc_profile"):
        with contextlib.suppress(ImageCms.PyCMSError, OSError, ValueError):
            image = _by_profile(image, ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"])))
    if image.mode == "P" and _has_transparency(image):
        image = image.convert("RGBA")
    gray, alpha = image.mode in ("1", "L", "LA", "La"), _has_transparency(image)
    mode = {(True, False): "L", (True, True): "LA", (False, False): "RGB", (False, True): "RGBA"}[gray, alpha]
    if "transparency" in image.info and image.mode in ("RGB", "L", "1"):
        image = image.convert("RGBA" if image.mode == "RGB" else "LA")
    width, height = image.size

    def bands() -> Iterator[np.ndarray]:
        for row in range(0, height, BAND):
            band = image.crop((0, row, width, min(row + BAND, height)))
            pixels = np.asarray(band if band.mode == mode else band.convert(mode))
            yield pixels[:, :, None] if pixels.ndim == 2 else pixels

    return Rows(height, width, len(mode), np.dtype(np.uint8), bands)


def _has_transparency(image: Image.Image) -> bool:
    return "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa")


def _by_profile(image: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    srgb = ImageCms.createProfile("sRGB")
    return ImageCms.profileToProfile(
        image, ImageCms.ImageCmsProfile(profile), ImageCms.ImageCmsProfile(srgb), outputMode="RGB"
    )


def _sixteen_bits(image: Image.Image) -> np.ndarray:
    """Gray of more than 8 bits as uint16, shape (H, W)."""
    values = np.asarray(image)
    if image.mode not in ("I", "F"):
        return values.astype(np.uint16)
    if not np.isfinite(values).all():
        raise UserError("it has values that are not finite numbers.")
    least, largest = float(values.min(initial=0)), float(values.max(initial=0))
    ranges = (1.0, 255.0, 65535.0) if image.mode == "F" else (65535.0,)
    top = next((top for top in ranges if largest <= top), None)
    if least < 0 or top is None:
        raise UserError(
            f"its values go from {least:g} to {largest:g}, and gray is in 0-65535, or for floats also in 0-1 or 0-255."
        )
    return np.rint(values.astype(np.float64) * (65535.0 / top)).astype(np.uint16)


def _deep_pixels(image: Image.Image, file: BinaryIO, page: int = 0) -> np.ndarray | None:
    """Colours of 16 bits, which Pillow reads as 8: uint16 (H, W, C); None for every other image."""
    if image.format == "PNG":
        file.seek(0)
        header = file.read(26)
        if header[24] != 16 or header[25] == 0:
            return None
        return _deep_png(file, gray=header[25] == _GRAY_AND_ALPHA)
    if image.format == "TIFF" and set(image.tag_v2.get(258, ())) == {16} and len(image.tag_v2[258]) > 1:
        return _deep_tiff(file, page)
    return None


def _deep_png(file: BinaryIO, gray: bool) -> np.ndarray:
    """By OpenCV: torchvision's decoder ends the process at some damaged files."""
    try:
        import cv2
    except ImportError as error:
        raise UserError(
            f"colours of 16 bits in a PNG are read by OpenCV, which cannot be imported here ({error})."
        ) from error
    file.seek(0)
    pixels = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16:
        raise UserError("it is a damaged PNG of 16 bits.")
    return np.ascontiguousarray(pixels[:, :, [2, 3] if gray else [2, 1, 0, 3][: pixels.shape[2]]])


def _deep_tiff(file: BinaryIO, page: int) -> np.ndarray:
    file.seek(0)
    with _tifffile().TiffFile(file) as tiff:
        return _channels_last(tiff.pages[page].asarray(), tiff.pages[page].axes)


def _unusual_tiff(file: BinaryIO, name: str, most_megapixels: float) -> Picture:
    """A TIFF that Pillow does not know (gray and alpha of 16 bits, ...); of its pages the first."""
    file.seek(0)
    with _tifffile().TiffFile(file) as tiff:
        page = tiff.pages[0]
        _check_size((page.imagewidth, page.imagelength), 1, name, most_megapixels)
        profile = page.tags.get(_PROFILE)
        notes = (f"of its {len(tiff.pages)} pictures the first is upscaled.",) if len(tiff.pages) > 1 else ()
        pixels = _channels_last(page.asarray(), page.axes)
        dpi = tuple(map(float, page.get_resolution("inch"))) if page.resolutionunit in (2, 3) else None
    if pixels.dtype not in (np.uint8, np.uint16):
        raise UserError(f"its values are {pixels.dtype}; pictures have 8 or 16 bits.")
    icc = bytes(profile.value) if profile is not None else None
    return Picture("TIFF", (Frame(rows_of(pixels)),), Metadata(icc=icc, dpi=dpi), notes=notes)


def _tifffile() -> Any:
    """The package, which logs of damage what it also raises."""
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)
    return tifffile


def _channels_last(pixels: np.ndarray, axes: str) -> np.ndarray:
    """A page of a TIFF as (H, W, C)."""
    if axes == "YX":
        pixels = pixels[:, :, None]
    elif axes == "SYX":
        pixels = pixels.transpose(1, 2, 0)
    elif axes != "YXS":
        raise UserError(f"a TIFF with the axes {axes} is no picture of rows, columns and channels.")
    if pixels.shape[2] > 4:
        raise UserError(f"it has {pixels.shape[2]} channels; pictures have 1 to 4.")
    return np.ascontiguousarray(pixels)


def _transposed(pixels: np.ndarray, image: Image.Image) -> np.ndarray:
    """Turned as the EXIF orientation says."""
    turn = {2: lambda p: p[:, ::-1], 3: lambda p: p[::-1, ::-1], 4: lambda p: p[::-1], 5: lambda p: p.swapaxes(0, 1),
            6: lambda p: p[::-1].swapaxes(0, 1), 7: lambda p: p[::-1, ::-1].swapaxes(0, 1),
            8: lambda p: p[:, ::-1].swapaxes(0, 1)}.get(image.getexif().get(_ORIENTATION), lambda p: p)  # fmt: skip
    return np.ascontiguousarray(turn(pixels))


def _metadata(image: Image.Image, file: BinaryIO | None = None) -> Metadata:
    """What is kept of an image that was turned as it says."""
    dpi, xmp = image.info.get("dpi"), image.info.get("xmp")
    with contextlib.suppress(Exception):
        dpi = None if dpi is None else (float(dpi[0]), float(dpi[1]))
    return Metadata(
        icc=None if image.mode in ("CMYK", "LAB") else image.info.get("icc_profile") or None,
        exif=_exif(image),
        xmp=xmp.encode() if isinstance(xmp, str) else xmp,
        dpi=dpi if dpi and all(1 < side < 1e6 for side in dpi) else None,  # 1: a TIFF that does not say
        texts=tuple(
            (str(key), str(value)) for key, value in getattr(image, "text", {}).items() if key != "XML:com.adobe.xmp"
        ),
        color_chunks=_chunks(file) if image.format == "PNG" and file is not None else (),
    )


def _exif(image: Image.Image) -> bytes | None:
    """The EXIF block with the orientation reset and without the size of the image, which changes; a damaged one is left out."""
    with contextlib.suppress(Exception):
        exif = image.getexif()
        if not len(exif) or "exif" not in image.info:  # a TIFF's are its own tags
            return None
        exif.pop(_ORIENTATION, None)
        inner = exif.get_ifd(_EXIF_IFD)
        for tag in (_EXIF_WIDTH, _EXIF_HEIGHT):
            inner.pop(tag, None)
        return exif.tobytes() or None
    return None


def _chunks(file: BinaryIO) -> tuple[tuple[bytes, bytes], ...]:
    """The chunks of a PNG that say what its colours mean."""
    found, position = [], 8
    while True:
        file.seek(position)
        head = file.read(8)
        if len(head) < 8:
            return tuple(found)
        length, kind = struct.unpack(">I4s", head)
        if kind == b"IDAT":
            return tuple(found)
        if kind in _COLOR_CHUNKS and length < 1000:
            found.append((kind, file.read(length)))
        position += 12 + length


def _with_channels(rows: Rows, channels: int) -> Rows:
    """The same image with as many channels: gray repeated, alpha opaque."""
    if rows.channels == channels:
        return rows

    def bands() -> Iterator[np.ndarray]:
        for band in rows.bands():
            alpha = band[:, :, -1:] if rows.has_alpha else np.full_like(band[:, :, :1], np.iinfo(band.dtype).max)
            color = band[:, :, :-1] if rows.has_alpha else band
            color = np.repeat(color, 3, axis=2) if channels > 2 and color.shape[2] == 1 else color
            yield np.concatenate([color, alpha], axis=2) if channels in (2, 4) else color

    return Rows(rows.height, rows.width, channels, rows.dtype, bands)


def _check_size(size: tuple[int, int], frames: int, name: str, most_megapixels: float) -> None:
    """Refuse an image before it is decoded, which would take more memory than there may be."""
    width, height = size
    megapixels = width * height * frames / 1e6
    if megapixels > most_megapixels:
        times = f" in {frames} frames" if frames > 1 else ""
        raise UserError(
            f"{name}: {width}x{height}{times} are {megapixels:,.0f} megapixels, and at most {most_megapixels:g} are read, because a damaged "
            f"or malicious file can claim any size; if it is right, --max-megapixels {int(megapixels) + 1}."
        )


@contextlib.contextmanager
def _unlimited() -> Iterator[None]:
    """Without Pillow's own limit: ours is asked right after."""
    with _OPENING:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


@contextlib.contextmanager
def _warnings_as_before() -> Iterator[None]:
    """Decoders warn of oddities (a truncated tag, a corrupt EXIF) that change nothing in the pixels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@functools.cache
def _register_heif() -> None:
    """Let Pillow read HEIC, where the package for it is installed."""
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
