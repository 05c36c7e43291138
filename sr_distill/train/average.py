"""Averaged weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class Average(nn.Module):
    """Exponential moving average of a model's weights: ``average = d average + (1 - d) weight`` after each step.

    d rises as ``(1 + n) / (10 + n)`` over the updates n to ``decay``, so that short runs are not held back by their random start;
    the first update copies. With ``decay`` 0 the average is the weights themselves. Buffers are copied. The averaged model is
    ``.module``, frozen and in eval mode.

    Args:
        model: the model.
        decay: largest d, in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__()
        self._decay = decay
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self.register_buffer("n_averaged", torch.tensor(0))

    def update_parameters(self, model: nn.Module) -> None:
        """Take in the weights as they are now."""
        self.blend(model, self.plan())

    def plan(self) -> float:
        """Count an update, and say which share the weights have in it: 1 - d."""
        count = int(self.n_averaged)  # it stays on the CPU: no device is asked
        self.n_averaged += 1
        return 1 - min((1 + count) / (10 + count), self._decay) if count else 1.0

    @torch.no_grad()
    def blend(self, model: nn.Module, share: float | Tensor) -> None:
        """Take in the weights with this share, a number or a scalar on the device; what can be recorded and replayed of an update."""
        averages, weights = list(self.module.parameters()), list(model.parameters())
        if isinstance(share, float) and share == 1.0:
            torch._foreach_copy_(averages, weights)
        else:
            differences = torch._foreach_sub(weights, averages)
            torch._foreach_mul_(differences, share)
            torch._foreach_add_(averages, differences)
        for kept, buffer in zip(self.module.buffers(), model.buffers(), strict=True):
            kept.copy_(buffer)
