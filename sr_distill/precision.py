"""Losses, and what is trained for them, are computed in float32, whatever the networks are in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_HALF = (torch.bfloat16, torch.float16)


def in_full_precision(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Call a loss with autocast off and half-precision tensors as float32."""
    with torch.autocast(tensors[0].device.type, enabled=False):
        return function(*(x.float() if x.dtype in _HALF else x for x in tensors))


class FullPrecision(nn.Module):
    """A module whose weights stay as they are where the module that it is a part of goes to half precision."""

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> FullPrecision:
        def kept(tensor: Tensor) -> Tensor:
            changed = fn(tensor)
            return tensor.to(changed.device) if changed.dtype in _HALF else changed

        return super()._apply(kept, *args, **kwargs)
