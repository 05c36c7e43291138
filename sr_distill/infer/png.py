"""PNG written as its rows come, of 8 and 16 bits: neither Pillow nor OpenCV writes a part of an image, or 16-bit RGB with a profile."""

from __future__ import annotations

import struct
import zlib
from typing import BinaryIO

import numpy as np

from .metadata import XMP_KEYWORD, Metadata, color_chunks
from .rows import Pixels, Rows

_COLOR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
_LONGEST = 2**31 - 1  # side, and chunk
_INCH = 0.0254
_CHUNK = 2**20
_AT_ONCE = 2**18  # bytes of the image that are filtered together: their differences take ten times as much


def write_png(file: BinaryIO, image: Rows, metadata: Metadata) -> None:
    """Write an image of uint8 or uint16 as it comes.

    Each row is filtered by Sub, Up or Paeth, whichever leaves the least sum of absolute differences (the heuristic of the PNG
    specification, section 12.8).

    Source: Portable Network Graphics Specification, 3rd edition (W3C).
    """
    depth = image.dtype.itemsize * 8
    file.write(b"\x89PNG\r\n\x1a\n")
    header = struct.pack(">IIBBBBB", image.width, image.height, depth, _COLOR_TYPES[image.channels], 0, 0, 0)
    _chunk(file, b"IHDR", header)
    _describe(file, metadata)
    packer = zlib.compressobj(
        1, zlib.DEFLATED, 15, 9, zlib.Z_RLE
    )  # of filtered photographs: smaller than level 3 of the default, and faster
    step = image.channels * image.dtype.itemsize
    above, waiting, at_once = (
        np.zeros((1, image.width * step), np.uint8),
        bytearray(),
        max(1, _AT_ONCE // (image.width * step)),
    )
    for band in image.bands():
        for row in range(0, len(band), at_once):
            lines = _bytes(band[row : row + at_once])
            waiting += packer.compress(_filtered(lines, above, step))
            above = lines[-1:].copy()
            if len(waiting) >= _CHUNK:
                _chunk(file, b"IDAT", bytes(waiting))
                waiting.clear()
    _chunk(file, b"IDAT", bytes(waiting) + packer.flush())
    _chunk(file, b"IEND", b"")


def _bytes(band: Pixels) -> np.ndarray:
    """Rows as the file has them: (rows, bytes), 16 bits with the high byte first."""
    if band.dtype == np.uint16:
        band = band.astype(">u2")
    return np.ascontiguousarray(band).view(np.uint8).reshape(len(band), -1)


def _filtered(lines: np.ndarray, above: np.ndarray, step: int) -> np.ndarray:
    """Each row as its differences to its neighbours, after the number of the filter: (rows, 1 + bytes)."""
    up = np.concatenate([above, lines[:-1]])
    left, corner = np.zeros_like(lines), np.zeros_like(lines)
    left[:, step:], corner[:, step:] = lines[:, :-step], up[:, :-step]
    candidates = {1: lines - left, 2: lines - up, 4: lines - _paeth(left, up, corner)}
    costs = np.stack(
        [np.abs(each.view(np.int8).astype(np.int16)).sum(1, dtype=np.int64) for each in candidates.values()]
    )
    best = costs.argmin(0)
    out = np.empty((len(lines), 1 + lines.shape[1]), np.uint8)
    for index, (number, each) in enumerate(candidates.items()):
        chosen = best == index
        out[chosen, 0], out[chosen, 1:] = number, each[chosen]
    return out


def _paeth(left: np.ndarray, up: np.ndarray, corner: np.ndarray) -> np.ndarray:
    """Of left, above and above left the one that is nearest to ``left + up - corner``."""
    a, b, c = (each.astype(np.int16) for each in (left, up, corner))
    to_left, to_up = np.abs(b - c), np.abs(a - c)
    to_corner = np.abs(a + b - 2 * c)
    return np.where((to_left <= to_up) & (to_left <= to_corner), left, np.where(to_up <= to_corner, up, corner))


def _describe(file: BinaryIO, metadata: Metadata) -> None:
    """The chunks before the pixels."""
    if metadata.icc is not None:
        _chunk(file, b"iCCP", b"ICC profile\0\0" + zlib.compress(metadata.icc))
    for kind, content in color_chunks(metadata):
        _chunk(file, kind, content)
    if metadata.dpi is not None:
        _chunk(file, b"pHYs", struct.pack(">IIB", *(round(side / _INCH) for side in metadata.dpi), 1))
    if metadata.exif is not None:
        _chunk(file, b"eXIf", metadata.exif.removeprefix(b"Exif\0\0"))
    if metadata.xmp is not None:
        _chunk(file, b"iTXt", XMP_KEYWORD.encode() + b"\0\0\0\0\0" + metadata.xmp)
    for key, value in metadata.texts:
        name = key.encode("latin-1", "replace")[:79]
        if name:
            _chunk(file, b"iTXt", name + b"\0\1\0\0\0" + zlib.compress(value.encode()))


def _chunk(file: BinaryIO, kind: bytes, content: bytes) -> None:
    file.write(struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content)))
