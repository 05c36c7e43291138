"""What an image file says of itself beside its pixels."""

from __future__ import annotations

import contextlib
import re
import struct
from dataclasses import dataclass
from typing import BinaryIO

from PIL import ExifTags, Image

_OF_THE_IMAGE = rb"tiff:Orientation|tiff:ImageWidth|tiff:ImageLength|exif:PixelXDimension|exif:PixelYDimension"
XMP_KEYWORD = "XML:com.adobe.xmp"
"""Of a PNG's text that is an XMP packet."""

_COLOR_CHUNKS = (b"gAMA", b"cHRM", b"sRGB", b"cICP")


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


def metadata_of(image: Image.Image, file: BinaryIO | None = None) -> Metadata:
    """What is kept of an image that was turned as it says."""
    dpi, xmp = image.info.get("dpi"), image.info.get("xmp")
    with contextlib.suppress(Exception):
        dpi = None if dpi is None else (float(dpi[0]), float(dpi[1]))
    return Metadata(
        icc=None if image.mode in ("CMYK", "LAB") else image.info.get("icc_profile") or None,
        exif=_exif(image),
        xmp=without_sizes(xmp.encode() if isinstance(xmp, str) else xmp),
        dpi=dpi if dpi and all(1 < side < 1e6 for side in dpi) else None,  # 1: a TIFF that does not say
        texts=tuple((str(key), str(value)) for key, value in getattr(image, "text", {}).items() if key != XMP_KEYWORD),
        color_chunks=_chunks(file) if image.format == "PNG" and file is not None else (),
    )


def color_chunks(metadata: Metadata) -> list[tuple[bytes, bytes]]:
    """Those of a PNG that hold beside its profile."""
    return [chunk for chunk in metadata.color_chunks if metadata.icc is None or chunk[0] == b"cICP"]


def _exif(image: Image.Image) -> bytes | None:
    """The EXIF block with the orientation reset and without the size of the image, which changes; a damaged one is left out."""
    with contextlib.suppress(Exception):
        exif = image.getexif()
        if not len(exif) or "exif" not in image.info:  # a TIFF's are its own tags
            return None
        for tag in (ExifTags.Base.Orientation, ExifTags.Base.ImageWidth, ExifTags.Base.ImageLength):
            exif.pop(tag, None)
        inner = exif.get_ifd(ExifTags.IFD.Exif)
        for tag in (ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight):
            inner.pop(tag, None)
        return exif.tobytes() or None
    return None


def without_sizes(packet: bytes | None) -> bytes | None:
    """An XMP packet without the orientation and the size of the image, as attributes or elements."""
    if not isinstance(packet, bytes):
        return None
    packet = re.sub(rb"\s+(?:" + _OF_THE_IMAGE + rb")=(?:\"[^\"]*\"|'[^']*')", b"", packet)
    return re.sub(rb"<(" + _OF_THE_IMAGE + rb")>[^<]*</\1>", b"", packet)


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
