"""RFDN, winner of the AIM 2020 efficient super-resolution challenge, and its parts, which later networks took over."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ...options.architectures import Architecture, Depth, Width
from ...registry import register_teacher
from ..base import StateDict
from .imdn import FusedBlocks

_conv1x1 = functools.partial(nn.Conv2d, kernel_size=1)
_conv3x3 = functools.partial(nn.Conv2d, kernel_size=3, padding=1)
_leaky_relu = functools.partial(F.leaky_relu, negative_slope=0.05)

MIN_SIZE = 15
"""Smallest side of the input of :class:`SpatialAttention`: 3x3 with stride 2, then pooling over 7."""


class SpatialAttention(nn.Module):
    """Enhanced spatial attention (ESA): a mask in (0, 1) from a strided, pooled, filtered and resized copy of the feature.

    ``conv1x1`` and ``conv3x3`` make a layer of a number of input and output channels.
    """

    def __init__(
        self,
        num_feat: int,
        conv1x1: Callable[[int, int], nn.Module] = _conv1x1,
        conv3x3: Callable[[int, int], nn.Module] = _conv3x3,
        activate: Callable[[Tensor], Tensor] = F.relu,
    ) -> None:
        super().__init__()
        self.activate = activate
        inner = num_feat // 4
        self.conv1 = conv1x1(num_feat, inner)
        self.conv_f = conv1x1(inner, inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride=2)
        self.conv_max = conv3x3(inner, inner)
        self.conv3 = conv3x3(inner, inner)
        self.conv3_ = conv3x3(inner, inner)
        self.conv4 = conv1x1(inner, num_feat)

    def forward(self, x: Tensor) -> Tensor:
        """Weight (B, C, H, W); H and W at least 15."""
        reduced = self.conv1(x)
        coarse = F.max_pool2d(self.conv2(reduced), kernel_size=7, stride=3)
        coarse = self.conv3_(self.activate(self.conv3(self.activate(self.conv_max(coarse)))))
        coarse = F.interpolate(coarse, size=x.shape[-2:], mode="bilinear", align_corners=False)
        return x * torch.sigmoid(self.conv4(coarse + self.conv_f(reduced)))


class DistillationBlock(nn.Module):
    """Residual feature distillation block (RFDB): before each of three shallow residual convolutions a 1x1 keeps half the channels.

    ``conv1x1`` and ``conv3x3`` make a layer of a number of input and output channels.
    """

    def __init__(
        self,
        num_feat: int,
        conv1x1: Callable[[int, int], nn.Module] = _conv1x1,
        conv3x3: Callable[[int, int], nn.Module] = _conv3x3,
        activate: Callable[[Tensor], Tensor] = _leaky_relu,
        activate_attention: Callable[[Tensor], Tensor] = F.relu,
    ) -> None:
        super().__init__()
        self.activate = activate
        kept = num_feat // 2
        self.c1_d, self.c1_r = conv1x1(num_feat, kept), conv3x3(num_feat, num_feat)
        self.c2_d, self.c2_r = conv1x1(num_feat, kept), conv3x3(num_feat, num_feat)
        self.c3_d, self.c3_r = conv1x1(num_feat, kept), conv3x3(num_feat, num_feat)
        self.c4 = conv3x3(num_feat, kept)
        self.c5 = conv1x1(4 * kept, num_feat)
        self.esa = SpatialAttention(num_feat, conv1x1, conv3x3, activate_attention)

    def forward(self, x: Tensor) -> Tensor:
        """(B, num_feat, H, W) to the same shape; H and W at least 15."""
        kept = []
        for keep, refine in ((self.c1_d, self.c1_r), (self.c2_d, self.c2_r), (self.c3_d, self.c3_r)):
            kept.append(self.activate(keep(x)))
            x = self.activate(refine(x) + x)
        kept.append(self.activate(self.c4(x)))
        return self.esa(self.c5(torch.cat(kept, dim=1)))


class RFDN(FusedBlocks):
    """Residual feature distillation network; RGB in [0, 255], H and W at least 15. The blocks are ``B1`` ... as in the authors' checkpoints.

    Source: Liu et al., "Residual Feature Distillation Network for Lightweight Image Super-Resolution", ECCVW 2020.
    """

    def __init__(self, scale: int, num_feat: int, num_block: int) -> None:
        super().__init__(scale, num_feat, num_block, "B", DistillationBlock)


@register_teacher
class RFDNOptions(Architecture):
    """Liu et al. 2020, residual feature distillation network; works on 0-255 inside."""

    type: Literal["rfdn"] = Field(description="Name of the network.")
    num_feat: Width = Field(50, ge=4, description="Channels of the body.")
    num_block: Depth = Field(4, description="Residual feature distillation blocks.")

    value_range = 255.0
    min_size = MIN_SIZE

    def build(self, scale: int) -> nn.Module:
        """The network for RGB."""
        return RFDN(scale, self.num_feat, self.num_block)

    @classmethod
    def recognise(cls, state: StateDict) -> tuple[dict[str, Any], tuple[int, ...]] | None:
        """Read off the authors' checkpoints."""
        if "B1.c1_d.weight" not in state or "B1.esa.conv_max.weight" not in state or "LR_conv.weight" not in state:
            return None
        num_feat = state["fea_conv.weight"].shape[0]
        if state["B1.c1_d.weight"].shape != (num_feat // 2, num_feat, 1, 1):
            return None
        num_block = sum(key.endswith(".c5.weight") for key in state)
        scale = math.isqrt(state["upsampler.0.weight"].shape[0] // 3)
        return {"num_feat": num_feat, "num_block": num_block}, (scale,)
