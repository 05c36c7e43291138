"""Frames of a film as RGB, and back, in the colours that the file says or leaves to be guessed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..rows import Pixels

LIMITED, FULL = 1, 2
"""Ranges of luma, as FFmpeg numbers them."""

_PLANES = "yuv444p16le"
_LUMA_OF = {
    1: (0.2126, 0.0722),
    4: (0.30, 0.11),
    5: (0.299, 0.114),
    6: (0.299, 0.114),
    7: (0.212, 0.087),
    9: (0.2627, 0.0593),
    10: (0.2627, 0.0593),
}
"""How much red and blue weigh in luma, by the number of a matrix in ITU-T H.273, which streams have."""
_HD = 720  # lines, from which on players take a stream that does not say so for BT.709


@dataclass(frozen=True)
class Look:
    """What the numbers of a stream's frames mean.

    Attributes:
        matrix: of H.273.
        limited: whether black is 16 and white 235.
        primaries, transfer: of H.273.
        deep: whether there are more than 8 bits.
        turns: quarter turns to the left by which frames are shown.
    """

    matrix: int
    limited: bool
    primaries: int
    transfer: int
    deep: bool
    turns: int


def look_of(frame: Any) -> Look:
    """What a frame says of itself; where it says nothing, what players take it for, who would guess otherwise for the larger one."""
    matrix = int(frame.colorspace)
    if matrix not in _LUMA_OF:  # it does not say: as players take it, which would guess otherwise for the larger one
        matrix = 1 if frame.height >= _HD else 6
    depth = max(component.bits for component in frame.format.components)
    full = int(frame.color_range) == FULL or frame.format.name.startswith("yuvj")
    return Look(
        matrix, not full, int(frame.color_primaries), int(frame.color_trc), depth > 8, round(frame.rotation / 90) % 4
    )


def to_pixels(frame: Any, look: Look) -> Pixels:
    """RGB float32 in [0, 1], turned as it is shown; the matrix is ours, because swscale's rounds down, by a level on average."""
    scaled = frame.reformat(format=_PLANES).to_ndarray().astype(np.float32) / 256
    matrix, offset = _to_rgb(look)
    rgb = ((scaled - offset) @ matrix.T).clip(0, 1)
    return np.ascontiguousarray(np.rot90(rgb, look.turns))


def to_frame(av: Any, pixels: Pixels, look: Look) -> Any:
    """The inverse of :func:`to_pixels`, but for the turn, in 4:2:0."""
    matrix, offset = _to_rgb(look)
    yuv = pixels @ np.linalg.inv(matrix).T.astype(np.float32) + offset
    levels = np.rint(yuv * 256).clip(0, 65535).astype(np.uint16)
    return av.VideoFrame.from_ndarray(levels, _PLANES).reformat(format="yuv420p10le" if look.deep else "yuv420p")


def _to_rgb(look: Look) -> tuple[np.ndarray, np.ndarray]:
    """Matrix (3, 3) that takes Y, Cb, Cr in levels of 8 bits, less an offset (3,), to RGB in [0, 1] (ITU-T H.273, section 8.3)."""
    red, blue = _LUMA_OF[look.matrix]
    green = 1 - red - blue
    luma, chroma = (219, 224) if look.limited else (255, 255)
    cb, cr = 2 * (1 - blue), 2 * (1 - red)
    matrix = np.array([[1, 0, cr], [1, -blue * cb / green, -red * cr / green], [1, cb, 0]]) / [luma, chroma, chroma]
    return matrix.astype(np.float32), np.array([16 if look.limited else 0, 128, 128], np.float32)
