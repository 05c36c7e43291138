"""Image files out: in bands where the format allows, with what the source said of itself."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin

from ..errors import UserError
from .metadata import XMP_KEYWORD, Metadata, color_chunks
from .picture import Frame, Picture
from .png import write_png
from .rows import Pixels, Rows, converted

_SEGMENT = 65533  # bytes of EXIF in a JPEG
_OF_XMP = 29  # bytes of its segment that say that it is XMP
_PAPER = 255  # what is transparent becomes white where a format has no transparency


@dataclass(frozen=True)
class Writer:
    """A format that is written.

    Attributes:
        suffix: of its files.
        longest: side that it can have, in pixels.
        alpha, deep, animated: whether it holds transparency, 16 bits, several frames with a timing.
    """

    suffix: str
    longest: int
    alpha: bool = True
    deep: bool = False
    animated: bool = False


FORMATS: dict[str, Writer] = {
    "png": Writer(".png", 2**31 - 1, deep=True, animated=True),
    "jpg": Writer(".jpg", 65500, alpha=False),
    "webp": Writer(".webp", 16383, animated=True),
    "tiff": Writer(".tif", 2**31 - 1, deep=True),
    "avif": Writer(".avif", 65535, animated=True),
    "gif": Writer(".gif", 65535, animated=True),
    "bmp": Writer(".bmp", 65535, alpha=False),
}
_SUFFIXES = {".jpeg": "jpg", ".jfif": "jpg", ".tiff": "tiff", ".tif": "tiff", ".apng": "png"}
_PILLOW = {"jpg": "JPEG", "webp": "WEBP", "avif": "AVIF", "gif": "GIF", "bmp": "BMP", "png": "PNG"}
_SETTINGS: dict[str, dict[str, Any]] = {
    "jpg": {"quality": 95, "subsampling": 0},
    "webp": {"quality": 95, "method": 4},
    "avif": {"quality": 90},
}


def format_of(suffix: str) -> str | None:
    """The format of files that end so; None where none is written."""
    suffix = suffix.lower()
    return _SUFFIXES.get(suffix, suffix[1:] if suffix[1:] in FORMATS else None)


def check(picture: Picture, size: tuple[int, int], kind: str) -> list[str]:
    """What the format cannot hold of a picture, in sentences; said before anything is computed.

    Args:
        size: height and width of the result.

    Raises:
        UserError: it cannot hold the picture at all.
    """
    writer, rows, notes = FORMATS[kind], picture.rows, []
    height, width = size
    if max(height, width) > writer.longest:
        raise UserError(
            f"{width}x{height} pixels are too many for {kind}, whose sides have at most {writer.longest:,}: --format png"
        )
    if len(picture.frames) > 1 and not picture.is_animated and kind != "tiff":
        raise UserError(f"it has {len(picture.frames)} pages, which only TIFF holds: --format tiff")
    if picture.is_animated and not writer.animated:
        raise UserError(
            f"it is an animation of {len(picture.frames)} frames, which {kind} does not hold: --format png, webp or gif"
        )
    if rows.has_alpha and not writer.alpha:
        notes.append(f"{kind} has no transparency: it becomes white.")
    if rows.dtype == np.uint16 and not writer.deep:
        notes.append(f"{kind} has 8 bits: of 16 bits the upper half is kept.")
    return notes + _held(picture.metadata, kind)[1]


def write_picture(file: BinaryIO, picture: Picture, kind: str) -> None:
    """Write a picture: PNG and TIFF as their rows come, other formats and animations from memory.

    Raises:
        OSError: the file cannot be written, or the format does not take the picture.
    """
    picture = replace(picture, metadata=_held(picture.metadata, kind)[0])
    if kind == "tiff":
        _write_tiff(file, picture)
    elif kind == "png" and not picture.is_animated:
        write_png(file, picture.rows, picture.metadata)
    else:
        _write_by_pillow(file, picture, kind)


def to_image(rows: Rows, metadata: Metadata | None = None) -> Image.Image:
    """A Pillow image of 8 bits (or of 16, where it is gray), with its profile, EXIF and resolution in ``info``."""
    deep = rows.dtype == np.uint16 and rows.channels == 1
    pixels = (rows if deep else converted(rows, np.uint8)).whole()
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    if metadata is not None:
        image.info |= _described(metadata, "PNG")
    return image


def _held(metadata: Metadata, kind: str) -> tuple[Metadata, list[str]]:
    """What a format holds of this, and sentences about the rest."""
    left: dict[str, str] = {}
    if metadata.exif is not None and kind in ("tiff", "gif", "bmp"):
        left["exif"] = f"{kind} is written without EXIF."
    if metadata.icc is not None and kind in ("gif", "bmp"):
        left["icc"] = f"{kind} is written without the colour profile: colours shift if it is not sRGB."
    if metadata.icc is not None and metadata.icc[16:20] == b"GRAY" and kind in ("webp", "avif"):
        left["icc"] = f"{kind} has no gray: it is written without the colour profile, which is one of gray."
    if kind == "jpg":
        for name, most in (("exif", _SEGMENT), ("xmp", _SEGMENT - _OF_XMP)):
            length = len(getattr(metadata, name) or b"")
            if length > most:
                left[name] = f"jpg is written without {name.upper()}, which has {length:,} bytes; it holds {most:,}."
    return replace(metadata, **dict.fromkeys(left)), list(left.values())


def _write_by_pillow(file: BinaryIO, picture: Picture, kind: str) -> None:
    flatten = (lambda image: image) if FORMATS[kind].alpha else _on_white
    images = [flatten(to_image(converted(frame.rows, np.uint8))) for frame in picture.frames]
    settings = {**_SETTINGS.get(kind, {}), **_described(picture.metadata, _PILLOW[kind])}
    if kind == "png":
        settings["pnginfo"] = _png_info(picture.metadata)
    if picture.is_animated:
        durations = [frame.duration for frame in picture.frames]
        settings |= {"save_all": True, "append_images": images[1:], "duration": _timing(durations, kind)}
        if picture.loop is not None or kind != "gif":
            settings["loop"] = 1 if picture.loop is None else picture.loop
        if kind in ("gif", "png"):
            settings["disposal"] = 2 if kind == "gif" and picture.rows.has_alpha else 0
        if kind == "png":
            settings["blend"] = 0
    buffer = io.BytesIO()  # some of Pillow's encoders want to go back in the file, which a pipe cannot
    images[0].save(buffer, _PILLOW[kind], **settings)
    file.write(buffer.getbuffer())


def _timing(durations: list[float], kind: str) -> list[float]:
    return durations if kind == "png" else [round(duration) for duration in durations]


def _described(metadata: Metadata, pillow: str) -> dict[str, Any]:
    """Arguments of Pillow's ``save``."""
    known = {"icc_profile": metadata.icc, "exif": metadata.exif, "dpi": metadata.dpi, "xmp": metadata.xmp}
    takes = {
        "JPEG": known.keys(), "WEBP": {"icc_profile", "exif", "xmp"}, "AVIF": {"icc_profile", "exif", "xmp"}, "BMP": {"dpi"},
        "GIF": set(), "PNG": {"icc_profile", "exif", "dpi"},
    }[pillow]  # fmt: skip
    return {key: value for key, value in known.items() if value is not None and key in takes}


def _png_info(metadata: Metadata) -> PngImagePlugin.PngInfo:
    """What :func:`write_png` writes beside what Pillow takes as arguments."""
    info = PngImagePlugin.PngInfo()
    for kind, content in color_chunks(metadata):
        info.add(kind, content)
    if metadata.xmp is not None:
        info.add_itxt(XMP_KEYWORD, metadata.xmp.decode("utf-8", "replace"))
    for key, value in metadata.texts:
        info.add_itxt(key, value, zip=True)
    return info


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode not in ("LA", "RGBA"):
        return image
    white = Image.new(image.mode[:-1], image.size, (_PAPER,) * (len(image.mode) - 1))
    white.paste(image.convert(image.mode[:-1]), mask=image.getchannel("A"))
    return white


def _write_tiff(file: BinaryIO, picture: Picture) -> None:
    """Deflate-compressed strips, each written when it is finished."""
    import tifffile

    size = sum(f.rows.height * f.rows.width * f.rows.channels * f.rows.dtype.itemsize for f in picture.frames)
    with tifffile.TiffWriter(file, bigtiff=size > 2**32 - 2**25) as tiff:
        for frame in picture.frames:
            _write_page(tiff, frame, picture.metadata)


def _write_page(tiff: Any, frame: Frame, metadata: Metadata) -> None:
    rows, strip = frame.rows, 64
    shape = (rows.height, rows.width) if rows.channels == 1 else (rows.height, rows.width, rows.channels)
    described: dict[str, Any] = {}
    if metadata.icc is not None:
        described["iccprofile"] = metadata.icc
    if metadata.dpi is not None:
        described |= {"resolution": metadata.dpi, "resolutionunit": "INCH"}
    if metadata.xmp is not None:
        described["extratags"] = [(int(ExifTags.Base.XMLPacket), 1, len(metadata.xmp), metadata.xmp, True)]
    if rows.has_alpha:
        described["extrasamples"] = ["unassalpha"]
    tiff.write(
        _strips(rows, strip), shape=shape, dtype=rows.dtype, rowsperstrip=strip, compression="zlib", predictor=True,
        photometric="rgb" if rows.channels > 2 else "minisblack", metadata=None, **described,
    )  # fmt: skip


def _strips(rows: Rows, height: int) -> Iterator[bytes]:
    """Strips of this many rows: differences to the pixel on the left (TIFF 6.0, section 14), deflated."""
    waiting = np.empty((0, rows.width, rows.channels), rows.dtype)
    for band in rows.bands():
        waiting = np.concatenate([waiting, band])
        while len(waiting) >= height:
            yield _packed(waiting[:height])
            waiting = waiting[height:]
    if len(waiting):
        yield _packed(waiting)


def _packed(strip: Pixels) -> bytes:
    differences = strip.copy()
    differences[:, 1:] -= strip[:, :-1]
    return zlib.compress(differences, 2)
