"""Whether a teacher is worth imitating, seen on a few training photos before the first step."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..data import PairStore
from ..data.images import to_tensor
from ..data.likeness import spread
from ..errors import ImageError, UserError
from ..models import Teacher, bicubic_model, upscale_uint8
from .measures import psnr_y

_PHOTOS, _SIDE, _BORDER = 5, 96, 4  # the last two in LR pixels


@torch.no_grad()
def compare_teacher(name: str, teacher: Teacher, store: PairStore, device: torch.device) -> tuple[float, float]:
    """PSNR-Y in dB of a teacher, and of bicubic upscaling, on the middle of a few training photos.

    Args:
        name: of the teacher; where the store has its outputs, these are looked at.
        device: where it runs otherwise.

    Raises:
        UserError: what it gives is no image.
    """
    rows = [_psnr(name, teacher, store, index, device) for index in spread(len(store.names), _PHOTOS)]
    teacher_psnr, bicubic_psnr = np.mean(rows, axis=0)
    return float(teacher_psnr), float(bicubic_psnr)


def _psnr(name: str, teacher: Teacher, store: PairStore, index: int, device: torch.device) -> list[float]:
    scale = store.scale
    lr, hr = _middle(store.lr[index], 1), _middle(store.hr[index], scale)
    if name in store.teachers:
        sr = _middle(store.teachers[name][index], scale)
    else:
        try:
            sr = upscale_uint8(teacher.to(device), lr, device).cpu()
        except ImageError as error:
            raise UserError(f"{store.names[index]}: {error}.") from error
    bicubic = upscale_uint8(bicubic_model(scale), lr, torch.device("cpu"))
    return [min(100.0, psnr_y(image, hr, _BORDER * scale).item()) for image in (sr, bicubic)]


def _middle(pixels: np.ndarray, scale: int) -> Tensor:
    """The middle of an image as a batch of one, at most ``_SIDE`` LR pixels wide and high."""
    top, left = (max(0, length // scale - _SIDE) // 2 * scale for length in pixels.shape[:2])
    side = _SIDE * scale
    return to_tensor(pixels[top : top + side, left : left + side])[None]
