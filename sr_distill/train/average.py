"""Averaged weights."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """Exponential moving average of a model's weights: ``average = d average + (1 - d) weight`` after each step.

    d rises as ``(1 + n) / (10 + n)`` over the updates n to ``decay``, so that short runs are not held back by their random start;
    the first update copies. With ``decay`` 0 the average is the weights themselves. Buffers are copied. The averaged model is
    ``.module``, frozen and in eval mode.
    """
    average = AveragedModel(model, multi_avg_fn=functools.partial(_blend, decay))
    average.module.eval().requires_grad_(False)
    return average


@torch.no_grad()
def _blend(decay: float, averages: list[Tensor], weights: list[Tensor], updates: Tensor) -> None:
    # The factor stays a tensor: as a number it would have to be fetched from the device in every step.
    share = 1 - ((1 + updates) / (10 + updates)).clamp(max=decay)
    differences = torch._foreach_sub(weights, averages)
    torch._foreach_mul_(differences, share)
    torch._foreach_add_(averages, differences)
