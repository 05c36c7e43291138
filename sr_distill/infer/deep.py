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
_HEAD = 2**20  # bytes in which a file's description of itself is looked for
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
    if image.format not in ("PNG", "JPEG2000", "TIFF") or image.mode == "CMYK" or (bits := depth(image, file)) <= 8:
        return None
    if image.format == "JPEG2000":
        return _deep_jpeg2000(file, bits)
    if image.format == "TIFF":
        return deep_page(file, page) if set(image.tag_v2[ExifTags.Base.BitsPerSample]) == {16} else None
    file.seek(25)
    kind = file.read(1)[0]
    return None if kind == 0 else _turned(_deep_png(file, gray=kind == _GRAY_AND_ALPHA), image)


def depth(image: Image.Image, file: BinaryIO) -> int:
    """Bits of a value in the file, where it may have more than 8; 8 for what has not, and for what cannot be found out."""
    if image.format == "HEIF":
        return image.info.get("bit_depth", 8)
    if image.format == "TIFF":
        return max(image.tag_v2.get(ExifTags.Base.BitsPerSample, (8,)))
    file.seek(0)
    if image.format == "PNG":
        return file.read(25)[24]
    if image.format == "AVIF":
        head = file.read(_HEAD)
        found = head.find(b"av1C")
        flags = head[found + 6 : found + 7] if found >= 0 else b""
        return {2: 10, 3: 12}.get(flags[0] >> 5 & 3, 8) if flags else 8
    if image.format == "JPEG2000":
        head = file.read(_HEAD)
        found = head.find(_SIZE_IN_JPEG2000)
        bits = head[found + _TO_PRECISION] + 1 if found >= 0 else 8
        return bits if bits <= 16 else 8  # signed numbers have 128 more
    return 8


def depth_notes(image: Image.Image, file: BinaryIO) -> tuple[str, ...]:
    """What is lost of the depth of an image that Pillow decoded, in a sentence."""
    bits = depth(image, file)
    return () if bits <= 8 or image.mode in MODES else (f"of its {bits} bits 8 are read.",)


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


def _deep_jpeg2000(file: BinaryIO, bits: int) -> np.ndarray | None:
    """By imagecodecs; 9 to 15 bits become 16."""
    import imagecodecs

    file.seek(0)
    pixels = np.atleast_3d(imagecodecs.jpeg2k_decode(file.read()))
    return widened(pixels, bits) if pixels.shape[2] <= 4 else None


def _turned(pixels: np.ndarray, image: Image.Image) -> np.ndarray:
    image.load()  # the EXIF block of a PNG may come after the pixels
    return turned(pixels, image.getexif().get(ExifTags.Base.Orientation, 1))
