"""IMDN, winner of the AIM 2019 constrained super-resolution challenge."""

from __future__ import annotations

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


class _ContrastAttention(nn.Module):
    """Contrast-aware channel attention: weights from the standard deviation plus the mean of each channel."""

    def __init__(self, num_feat: int) -> None:
        super().__init__()
        self.conv_du = nn.Sequential(
            nn.Conv2d(num_feat, num_feat // 16, 1), nn.ReLU(), nn.Conv2d(num_feat // 16, num_feat, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3), keepdim=True)
        # eps inside the root: a flat channel has a finite gradient.
        deviation = ((x - mean).square().mean((2, 3), keepdim=True) + 1e-12).sqrt()
        return x * self.conv_du(deviation + mean)


class _Block(nn.Module):
    """Information multi-distillation block: a quarter of the channels is kept after each of four convolutions."""

    def __init__(self, num_feat: int) -> None:
        super().__init__()
        self.kept = num_feat // 4
        rest = num_feat - self.kept
        self.c1 = nn.Conv2d(num_feat, num_feat, 3, padding=1)
        self.c2 = nn.Conv2d(rest, num_feat, 3, padding=1)
        self.c3 = nn.Conv2d(rest, num_feat, 3, padding=1)
        self.c4 = nn.Conv2d(rest, self.kept, 3, padding=1)
        self.c5 = nn.Conv2d(num_feat, num_feat, 1)
        self.cca = _ContrastAttention(num_feat)

    def forward(self, x: Tensor) -> Tensor:
        kept, rest = [], x
        for conv in (self.c1, self.c2, self.c3):
            out = F.leaky_relu(conv(rest), 0.05)
            kept.append(out[:, : self.kept])
            rest = out[:, self.kept :]
        kept.append(self.c4(rest))
        return self.c5(self.cca(torch.cat(kept, dim=1))) + x


class FusedBlocks(nn.Module):
    """Blocks one after the other, all their outputs fused by a 1x1 convolution, a skip and sub-pixel upscaling.

    The blocks are ``<prefix>1``, ``<prefix>2``, ... as in the checkpoints of IMDN and RFDN.
    """

    def __init__(
        self, scale: int, num_feat: int, num_block: int, prefix: str, block: Callable[[int], nn.Module]
    ) -> None:
        super().__init__()
        self.fea_conv = nn.Conv2d(3, num_feat, 3, padding=1)
        self.names = [f"{prefix}{index}" for index in range(1, num_block + 1)]
        for name in self.names:
            self.add_module(name, block(num_feat))
        self.c = nn.Sequential(nn.Conv2d(num_feat * num_block, num_feat, 1), nn.LeakyReLU(0.05))
        self.LR_conv = nn.Conv2d(num_feat, num_feat, 3, padding=1)
        self.upsampler = nn.Sequential(nn.Conv2d(num_feat, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale))

    def forward(self, x: Tensor) -> Tensor:
        """Upscale (B, 3, H, W) to (B, 3, H*scale, W*scale)."""
        first = self.fea_conv(x)
        outs, out = [], first
        for name in self.names:
            out = self.get_submodule(name)(out)
            outs.append(out)
        return self.upsampler(self.LR_conv(self.c(torch.cat(outs, dim=1))) + first)


class IMDN(FusedBlocks):
    """Information multi-distillation network; RGB in [0, 1]. The blocks are ``IMDB1`` ... as in the authors' checkpoints.

    Source: Hui et al., "Lightweight Image Super-Resolution with Information Multi-distillation Network", ACM MM 2019.
    """

    def __init__(self, scale: int, num_feat: int, num_block: int) -> None:
        super().__init__(scale, num_feat, num_block, "IMDB", _Block)


@register_teacher
class IMDNOptions(Architecture):
    """Hui et al. 2019, information multi-distillation network."""

    type: Literal["imdn"] = Field(description="Name of the network.")
    num_feat: Width = Field(64, multiple_of=16, description="Channels of the body.")
    num_block: Depth = Field(6, description="Information multi-distillation blocks.")

    def build(self, scale: int) -> nn.Module:
        """The network for RGB."""
        return IMDN(scale, self.num_feat, self.num_block)

    @classmethod
    def recognise(cls, state: StateDict) -> tuple[dict[str, Any], tuple[int, ...]] | None:
        """Read off the authors' checkpoints."""
        if "IMDB1.cca.conv_du.0.weight" not in state or state["fea_conv.weight"].shape[1] != 3:
            return None
        num_block = sum(key.endswith(".c5.weight") for key in state)
        scale = math.isqrt(state["upsampler.0.weight"].shape[0] // 3)
        return {"num_feat": state["fea_conv.weight"].shape[0], "num_block": num_block}, (scale,)
