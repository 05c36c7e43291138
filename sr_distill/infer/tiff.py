"""Pages of TIFFs that Pillow reads as 8 bits, or not at all, with what their tags say of the values."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags

from ..errors import UserError

_WHITE_IS_ZERO, _COLORS = 0, {0: 1, 1: 1, 2: 3}  # of PhotometricInterpretation: gray, gray, RGB
_CMYK = 5
_UNSPECIFIED, _PREMULTIPLIED = 0, 1  # of ExtraSamples


@dataclass(frozen=True)
class Tiff:
    """The first page of a TIFF that Pillow does not know (gray and alpha of 16 bits, ...).

    Attributes:
        pixels: uint8 or uint16, (H, W, C).
        icc: colour profile.
        xmp: XMP packet.
        dpi: pixels per inch.
        pages: how many there are.
    """

    pixels: np.ndarray
    icc: bytes | None
    xmp: bytes | None
    dpi: tuple[float, float] | None
    pages: int


def read_tiff(file: BinaryIO, check: Callable[[tuple[int, int]], object]) -> Tiff:
    """Read the first page of such a TIFF.

    Args:
        check: is given its width and height before anything is decoded.

    Raises:
        UserError: it is no picture of 1 to 4 channels of 8 or 16 bits, gray or RGB.
    """
    file.seek(0)
    with _tifffile().TiffFile(file) as tiff:
        page = tiff.pages[0]
        check((page.imagewidth, page.imagelength))
        pixels = _pixels(page)
        dpi = tuple(map(float, page.get_resolution("inch"))) if page.resolutionunit in (2, 3) else None
        return Tiff(
            pixels,
            _content(page, ExifTags.Base.InterColorProfile),
            _content(page, ExifTags.Base.XMLPacket),
            dpi,
            len(tiff.pages),
        )


def deep_page(file: BinaryIO, index: int) -> np.ndarray | None:
    """A page of 16 bits as uint16 (H, W, C); None where Pillow reads it as it is meant (CMYK, in 8 bits), or it is signed.

    Raises:
        UserError: as :func:`read_tiff`.
    """
    file.seek(0)
    with _tifffile().TiffFile(file) as tiff:
        page = tiff.pages[index]
        return None if page.photometric == _CMYK or page.dtype != np.uint16 else _pixels(page)


def widened(pixels: np.ndarray, bits: int) -> np.ndarray:
    """Values of this many bits over the whole range of their type."""
    most = np.iinfo(pixels.dtype).max
    return pixels if 2**bits - 1 == most else np.rint(pixels * (most / (2**bits - 1))).astype(pixels.dtype)


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turned as an orientation of EXIF and TIFF says."""
    turn = {2: lambda p: p[:, ::-1], 3: lambda p: p[::-1, ::-1], 4: lambda p: p[::-1], 5: lambda p: p.swapaxes(0, 1),
            6: lambda p: p[::-1].swapaxes(0, 1), 7: lambda p: p[::-1, ::-1].swapaxes(0, 1),
            8: lambda p: p[:, ::-1].swapaxes(0, 1)}.get(orientation, lambda p: p)  # fmt: skip
    return np.ascontiguousarray(turn(pixels))


def _tifffile() -> Any:
    """The package, which logs of damage what it also raises."""
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)
    return tifffile


def _pixels(page: Any) -> np.ndarray:
    """A page as gray or RGB, with alpha if there is any, the right way up."""
    if page.dtype not in (np.uint8, np.uint16):
        raise UserError(f"its values are {page.dtype}; pictures have 8 or 16 bits.")
    if page.photometric not in _COLORS:
        raise UserError(
            f"its colours are {getattr(page.photometric, 'name', page.photometric)} of {page.bitspersample} bits, which is not "
            "read: save it as RGB."
        )
    pixels, colors = widened(_channels_last(page.asarray(), page.axes), page.bitspersample), _COLORS[page.photometric]
    most = np.iinfo(pixels.dtype).max
    if page.photometric == _WHITE_IS_ZERO:
        pixels[:, :, 0] = most - pixels[:, :, 0]
    extra = (page.extrasamples or (None,))[0]
    pixels = pixels[:, :, : colors + (extra != _UNSPECIFIED)]
    if extra == _PREMULTIPLIED:
        color, alpha = pixels[:, :, :colors].astype(np.float64), pixels[:, :, colors:]
        color = np.rint(color * most / np.maximum(alpha, 1)).clip(0, most)
        pixels = np.concatenate([color.astype(pixels.dtype), alpha], axis=2)
    orientation = page.tags.get(ExifTags.Base.Orientation)
    return turned(pixels, 1 if orientation is None else orientation.value)


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
    return pixels.copy()


def _content(page: Any, tag: int) -> bytes | None:
    """Of a tag that is bytes; some programs call them text."""
    value = getattr(page.tags.get(tag), "value", None)
    value = value.encode() if isinstance(value, str) else value
    return value if isinstance(value, bytes) else None
