"""Image files of any kind, decoded without losing what is in them: depth, gray, alpha, profile, EXIF, resolution, frames."""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps, ImageSequence, UnidentifiedImageError

from ..data.images import image_size
from ..errors import UserError
from .deep import MODES, deep_pixels, depth_notes, sixteen_bits
from .metadata import Metadata, metadata_of, without_sizes
from .rows import BAND, Rows, rows_of
from .tiff import Tiff, read_tiff

SUFFIXES = frozenset({
    ".png", ".apng", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jp2", ".tga",
    ".ppm", ".pgm", ".pbm",
})  # fmt: skip
"""Of files that are taken for images when a folder is searched; a file that is named may have any."""

MOST_MEGAPIXELS = 300
"""Of an image that is read without being told that it may have more."""

_OPENING = threading.Lock()  # Pillow's limit is global


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
    metadata: Metadata = field(default_factory=Metadata)
    loop: int | None = None
    notes: tuple[str, ...] = ()

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
    check = functools.partial(_check_size, frames=1, name=name, most_megapixels=most_megapixels)
    _register_heif()
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(_without_warnings())
            file = io.BytesIO(source) if isinstance(source, bytes) else stack.enter_context(source.open("rb"))
            try:
                with _unlimited():
                    image = stack.enter_context(Image.open(file))
            except UnidentifiedImageError:
                file.seek(0)
                if file.read(2) not in (b"II", b"MM"):
                    raise
                return _of_tiff(read_tiff(file, check))
            check(image.size, frames=getattr(image, "n_frames", 1))
            return _decoded(image, file, check)
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
    with _without_warnings(), _unlimited():
        size = image_size(path)
    return size and size[::-1]


def picture_of(image: Image.Image) -> Picture:
    """An image that Pillow has decoded already; only the frame it shows.

    Raises:
        UserError: its mode is one that means no picture.
    """
    turned = ImageOps.exif_transpose(image)
    return Picture(image.format or "PNG", (Frame(_rows(turned)),), metadata_of(turned))


def _decoded(image: Image.Image, file: BinaryIO, check: Callable[..., None]) -> Picture:
    count = getattr(image, "n_frames", 1)
    kind = image.format or "PNG"
    if count > 1 and kind == "TIFF":
        return _pages(image, file, count, check)
    if count > 1 and kind in ("GIF", "WEBP", "PNG", "AVIF"):
        return _animation(image, file, count)
    pixels = deep_pixels(image, file)
    image.load()
    notes: tuple[str, ...] = ()
    if count > 1:  # a phone's HEIC or MPO with a second view
        notes = (f"of its {count} pictures the first is upscaled.",)
    notes += depth_notes(image, file) if pixels is None else ()
    ImageOps.exif_transpose(image, in_place=True)
    rows = _rows(image) if pixels is None else rows_of(pixels)
    return Picture(kind, (Frame(rows),), metadata_of(image, file), notes=notes)


def _animation(image: Image.Image, file: BinaryIO, count: int) -> Picture:
    frames, orientation = [], image.getexif().get(ExifTags.Base.Orientation, 1)
    # What an APNG shows where animations are not known need not be part of it.
    first = int(bool(image.info.get("default_image")))
    for frame in itertools.islice(ImageSequence.Iterator(image), first, None):
        still = frame.convert(
            "RGBA" if _has_transparency(frame) or (frames and frames[0].rows.channels == 4) else frame.mode
        )
        still.getexif()[ExifTags.Base.Orientation] = orientation  # which a frame need not know
        frames.append(Frame(_rows(ImageOps.exif_transpose(still)), float(frame.info.get("duration", 0))))
    most = max(frame.rows.channels for frame in frames)
    same = tuple(replace(frame, rows=_with_channels(frame.rows, most)) for frame in frames)
    if "loop" in image.info:
        loop = int(image.info["loop"])
    else:
        loop = None if image.format == "GIF" else 0
    return Picture(image.format, same, metadata_of(image, file), loop, depth_notes(image, file))


def _pages(image: Image.Image, file: BinaryIO, count: int, check: Callable[..., None]) -> Picture:
    pages, notes = [], ()
    for index in range(count):
        image.seek(index)
        check(image.size)  # each has its own
        if pages and image.tag_v2.get(ExifTags.Base.NewSubfileType, 0) & 1:  # the same picture, smaller
            continue
        pixels = deep_pixels(image, file, index)
        image.load()
        notes = notes or (depth_notes(image, file) if pixels is None else ())
        pages.append(Frame(_rows(image.copy()) if pixels is None else rows_of(pixels)))
    image.seek(0)
    return Picture("TIFF", tuple(pages), metadata_of(image), notes=notes)


def _of_tiff(tiff: Tiff) -> Picture:
    notes = (f"of its {tiff.pages} pictures the first is upscaled.",) if tiff.pages > 1 else ()
    metadata = Metadata(icc=tiff.icc, xmp=without_sizes(tiff.xmp), dpi=tiff.dpi)
    return Picture("TIFF", (Frame(rows_of(tiff.pixels)),), metadata, notes=notes)


def _rows(image: Image.Image) -> Rows:
    """The pixels of a decoded image, converted as its rows are asked for."""
    if image.mode in MODES:
        gray = sixteen_bits(image)
        clear = image.info.get("transparency")  # the one value that is
        if isinstance(clear, int):
            return rows_of(np.stack([gray, np.where(gray == clear, 0, 65535).astype(np.uint16)], 2))
        return rows_of(gray[:, :, None])
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
def _without_warnings() -> Iterator[None]:
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
