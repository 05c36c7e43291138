"""Images of more than 8 bits, which Pillow reads as 8."""

from __future__ import annotations

from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image

from ..errors import UserError
from .tiff import deep_page, turned, widened

MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")
"""Pillow's, for gray of more than 8 bits."""

_GRAY_AND_ALPHA = 4  # of a PNG's colour types
_SIZE_IN_JPEG2000 = b"\xff\x4f\xff\x51"  # markers SOC and SIZ
_TO_PRECISION = 42  # bytes, to Ssiz of the first component


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
    """Values of 16 bits that Pillow reads as 8, or not as they are meant: uint16 (H, W, C); None for every other image."""
    if image.format == "PNG":
        if not is_deep_png(file):
            return None
        file.seek(0)
        kind = file.read(26)[25]
        return None if kind == 0 else _turned(_deep_png(file, gray=kind == _GRAY_AND_ALPHA), image)
    if image.format == "JPEG2000" and image.mode != "CMYK":
        return _deep_jpeg2000(file)
    if image.format == "TIFF" and set(image.tag_v2.get(258, ())) == {16}:
        return deep_page(file, page)
    return None


def is_deep_png(file: BinaryIO) -> bool:
    """Whether a PNG has 16 bits."""
    file.seek(24)
    return file.read(1) == b"\x10"


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


def _deep_jpeg2000(file: BinaryIO) -> np.ndarray | None:
    """By imagecodecs; 9 to 15 bits become 16."""
    import imagecodecs

    file.seek(0)
    content = file.read()
    bits = content[content.find(_SIZE_IN_JPEG2000) + _TO_PRECISION] + 1
    if not 8 < bits <= 16:  # signed numbers have 128 more
        return None
    pixels = imagecodecs.jpeg2k_decode(content)
    return None if pixels.ndim == 3 and pixels.shape[2] > 4 else widened(np.atleast_3d(pixels), bits)


def _turned(pixels: np.ndarray, image: Image.Image) -> np.ndarray:
    image.load()  # the EXIF block of a PNG may come after the pixels
    return turned(pixels, image.getexif().get(ExifTags.Base.Orientation, 1))
