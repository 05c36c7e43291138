"""Images of more than 8 bits, which Pillow reads as 8 or not at all."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image

from ..errors import UserError

MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")
"""Pillow's, for gray of more than 8 bits."""

_GRAY_AND_ALPHA = 4  # of a PNG's colour types
_PROFILE = 34675  # a tag of TIFF


def sixteen_bits(image: Image.Image) -> np.ndarray:
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


def deep_pixels(image: Image.Image, file: BinaryIO, page: int = 0) -> np.ndarray | None:
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


@dataclass(frozen=True)
class Tiff:
    """The first page of a TIFF that Pillow does not know (gray and alpha of 16 bits, ...).

    Attributes:
        pixels: uint8 or uint16, (H, W, C).
        icc: colour profile.
        dpi: pixels per inch.
        pages: how many there are.
    """

    pixels: np.ndarray
    icc: bytes | None
    dpi: tuple[float, float] | None
    pages: int


def read_tiff(file: BinaryIO, check: Callable[[tuple[int, int]], object]) -> Tiff:
    """Read the first page of such a TIFF.

    Args:
        check: is given its width and height before anything is decoded.

    Raises:
        UserError: it is no picture of 1 to 4 channels of 8 or 16 bits.
    """
    file.seek(0)
    with _tifffile().TiffFile(file) as tiff:
        page = tiff.pages[0]
        check((page.imagewidth, page.imagelength))
        profile = page.tags.get(_PROFILE)
        pixels = _channels_last(page.asarray(), page.axes)
        dpi = tuple(map(float, page.get_resolution("inch"))) if page.resolutionunit in (2, 3) else None
        pages = len(tiff.pages)
    if pixels.dtype not in (np.uint8, np.uint16):
        raise UserError(f"its values are {pixels.dtype}; pictures have 8 or 16 bits.")
    return Tiff(pixels, bytes(profile.value) if profile is not None else None, dpi, pages)


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


def transposed(pixels: np.ndarray, image: Image.Image) -> np.ndarray:
    """Turned as the EXIF orientation says."""
    turn = {2: lambda p: p[:, ::-1], 3: lambda p: p[::-1, ::-1], 4: lambda p: p[::-1], 5: lambda p: p.swapaxes(0, 1),
            6: lambda p: p[::-1].swapaxes(0, 1), 7: lambda p: p[::-1, ::-1].swapaxes(0, 1),
            8: lambda p: p[:, ::-1].swapaxes(0, 1)}.get(image.getexif().get(ExifTags.Base.Orientation), lambda p: p)  # fmt: skip
    return np.ascontiguousarray(turn(pixels))
