"""Averaged weights."""

from __future__ import annotations

import copy

import torch
from torch import nn


class EMA:
    """Exponential moving average of a module's weights: ``average = d average + (1 - d) weight`` after each step.

    d rises from 0.1 to ``decay`` as ``(1 + n) / (10 + n)`` over the updates n, so that short runs are not held back by their
    random start. With ``decay`` 0 the average is the weights themselves.

    Attributes:
        module: a frozen copy in eval mode that holds the averaged weights.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take in the weights of ``module`` after an optimizer step."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages, weights = list(self.module.parameters()), list(module.parameters())
        torch._foreach_lerp_(averages, weights, 1 - decay)
        for average, value in zip(self.module.buffers(), module.buffers()):
            average.copy_(value)

    def state_dict(self) -> dict:
        """Weights and the number of updates."""
        return {"module": self.module.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict) -> None:
        """The inverse of :meth:`state_dict`."""
        self.module.load_state_dict(state["module"])
        self.updates = state["updates"]
