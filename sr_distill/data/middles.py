"""The middle of a photograph as a small LR image: what int8 is calibrated with, and what runtimes are compared on."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError
from .bicubic import downscale_to_uint8, mirrored
from .images import read_rgb, to_tensor

SIDE = 128
"""Of the crops, in LR pixels, where no size is asked for."""


def shrunk_middle(path: Path, scale: int, size: tuple[int, int] = (SIDE, SIDE)) -> Tensor:
    """uint8 RGB (3, h, w) of this size: the middle of the photo shrunk by ``scale``; a smaller one is continued by its mirror image.

    Raises:
        UserError: the file is no image, or too small to be shrunk.
    """
    hr = to_tensor(read_rgb(path))
    height, width = (side - side % scale for side in hr.shape[-2:])
    if not height or not width:
        raise UserError(f"{path}: too small to be shrunk by {scale}.")
    return _middle(downscale_to_uint8(hr[:, :height, :width], scale), size)


def _middle(lr: Tensor, size: tuple[int, int]) -> Tensor:
    for dim, wanted in zip((-2, -1), size):
        there = lr.shape[dim]
        start = max(0, (there - wanted) // 2)
        lr = lr.index_select(dim, mirrored(torch.arange(start, start + wanted), there))
    return lr
