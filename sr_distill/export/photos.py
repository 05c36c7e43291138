"""Real photographs as inputs of exported models: to calibrate int8, and to compare a runtime with PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ..data import embedded
from ..data.color import luma
from ..data.images import list_images
from ..data.middles import SIDE, shrunk_middle
from ..errors import UserError
from .graph import Signature

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
    size = signature.size or (SIDE, SIDE)
    return [as_input(shrunk_middle(path, signature.scale, size), signature) for path in files]


def as_input(lr: Tensor, signature: Signature) -> Tensor:
    """uint8 RGB (3, h, w) as :class:`Signature` has it."""
    if signature.io == "uint8":
        return lr.permute(1, 2, 0)[None].contiguous()
    image = lr[None].float().div(255)
    return luma(image) if signature.io == "y" else image
