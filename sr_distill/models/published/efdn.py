"""EFDN, edge-enhanced feature distillation network of the NTIRE 2022 efficient super-resolution challenge."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ...options.architectures import Architecture, Width
from ...registry import register_teacher
from ..base import StateDict
from .rfdn import MIN_SIZE, SpatialAttention


class _Conv(nn.Module):
    """A convolution of this name and size, then a PReLU."""

    def __init__(self, name: str, num_feat: int, kernel_size: int) -> None:
        super().__init__()
        self.name = name
        self.add_module(name, nn.Conv2d(num_feat, num_feat, kernel_size, padding=kernel_size // 2))
        self.act = nn.PReLU(num_feat)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.get_submodule(self.name)(x))


class _Cell(nn.Module):
    """Three convolutions in a row; half the channels of the input and of each of their outputs are joined and weighted, and a skip."""

    def __init__(self, num_feat: int) -> None:
        super().__init__()
        self.conv1 = _Conv("conv1x1", num_feat, 1)
        self.conv2 = _Conv("rep_conv", num_feat, 3)
        self.conv3 = _Conv("rep_conv", num_feat, 3)
        self.branch = nn.ModuleList([nn.Conv2d(num_feat, num_feat // 2, 1) for _ in range(4)])
        self.fuse = nn.Conv2d(num_feat // 2 * 4, num_feat, 1)
        self.att = SpatialAttention(num_feat)

    def forward(self, x: Tensor) -> Tensor:
        outs = [x]
        for conv in (self.conv1, self.conv2, self.conv3):
            outs.append(conv(outs[-1]))
        joined = torch.cat([branch(out) for branch, out in zip(self.branch, outs)], dim=1)
        return self.att(self.fuse(joined)) + x


class EFDN(nn.Module):
    """Edge-enhanced feature distillation network; RGB in [0, 1], in its deployed form: each edge-enhanced block is one 3x3 convolution.

    Source: Wang, "Edge-Enhanced Feature Distillation Network for Efficient Super-Resolution", CVPRW 2022.
    """

    def __init__(self, scale: int, num_feat: int) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, num_feat, 3, padding=1)
        self.cells = nn.ModuleList([_Cell(num_feat) for _ in range(4)])
        self.local_fuse = nn.ModuleList([nn.Conv2d(2 * num_feat, num_feat, 1) for _ in range(3)])
        self.tail = nn.Sequential(nn.Conv2d(num_feat, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale))

    def forward(self, x: Tensor) -> Tensor:
        """Upscale (B, 3, H, W) to (B, 3, H*scale, W*scale); H and W at least 15."""
        first = self.head(x)
        one = self.cells[0](first)
        two = self.cells[1](one)
        three = self.cells[2](self.local_fuse[0](torch.cat([one, two], dim=1)))
        four = self.cells[3](self.local_fuse[1](torch.cat([two, three], dim=1)))
        # The published weights are for two with four here, not three with four.
        return self.tail(self.local_fuse[2](torch.cat([two, four], dim=1)) + first)


@register_teacher
class EFDNOptions(Architecture):
    """Wang 2022, edge-enhanced feature distillation network in its deployed form (plain 3x3 convolutions)."""

    type: Literal["efdn"] = Field(description="Name of the network.")
    num_feat: Width = Field(48, ge=4, description="Channels of the body.")

    min_size = MIN_SIZE

    def build(self, scale: int) -> nn.Module:
        """The network for RGB."""
        return EFDN(scale, self.num_feat)

    @classmethod
    def recognise(cls, state: StateDict) -> tuple[dict[str, Any], tuple[int, ...]] | None:
        """Read off the authors' checkpoints."""
        if "cells.0.conv2.rep_conv.weight" not in state or "cells.0.att.conv_max.weight" not in state:
            return None
        scale = math.isqrt(state["tail.0.weight"].shape[0] // 3)
        return {"num_feat": state["head.weight"].shape[0]}, (scale,)
