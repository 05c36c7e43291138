"""Real photographs as inputs of exported models: to calibrate int8, and to compare a runtime with PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..data import embedded
from ..data.bicubic import downscale_to_uint8, mirrored
from ..data.color import luma
from ..data.images import list_images, read_rgb, to_tensor
from ..errors import UserError
from .graph import Signature

SIDE = 128
"""Of the crops for models that take any size, in LR pixels."""

MOST = 32
"""Photos of a folder that are read."""


def calibration_files(folder: Path | None) -> list[Path]:
    """The photos that int8 is calibrated with: of a folder, spread over it, or the embedded ones to train on.

    Raises:
        UserError: the folder holds no image.
    """
    if folder is None:
        return embedded.training_photos()
    files = list_images(folder)
    if not files:
        raise UserError(f"{folder}: no image to calibrate with was found in this folder or below it.")
    return files[:: -(-len(files) // MOST)]


def inputs(files: Sequence[Path], signature: Signature) -> list[Tensor]:
    """The middle of each photo, shrunk by the scale, as an exported model takes it; a smaller one is continued by its mirror image."""
    return [
        as_input(_middle(_shrunk(path, signature.scale), signature.size or (SIDE, SIDE)), signature) for path in files
    ]


def as_input(lr: Tensor, signature: Signature) -> Tensor:
    """uint8 RGB (3, h, w) as :class:`Signature` has it."""
    if signature.io == "uint8":
        return lr.permute(1, 2, 0)[None].contiguous()
    image = lr[None].float().div(255)
    return luma(image) if signature.io == "y" else image


def _shrunk(path: Path, scale: int) -> Tensor:
    hr = to_tensor(read_rgb(path))
    height, width = (side - side % scale for side in hr.shape[-2:])
    if not height or not width:
        raise UserError(f"{path}: too small to be shrunk by {scale}.")
    return downscale_to_uint8(hr[:, :height, :width], scale)


def _middle(lr: Tensor, size: tuple[int, int]) -> Tensor:
    for dim, wanted in zip((-2, -1), size):
        there = lr.shape[dim]
        start = max(0, (there - wanted) // 2)
        lr = lr.index_select(dim, mirrored(torch.arange(start, start + wanted), there))
    return lr
