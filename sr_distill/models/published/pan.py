"""PAN, pixel attention network of the AIM 2020 efficient super-resolution challenge."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ...options.architectures import Architecture, Depth, Width
from ...registry import register_teacher
from ..base import StateDict


class _PixelAttention(nn.Module):
    """x times sigmoid(1x1 convolution of x)."""

    def __init__(self, num_feat: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(num_feat, num_feat, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.conv(x))


class _AttentionConv(nn.Module):
    """A 3x3 convolution, weighted per pixel, then another."""

    def __init__(self, num_feat: int) -> None:
        super().__init__()
        self.k2 = nn.Conv2d(num_feat, num_feat, 1)
        self.k3 = nn.Conv2d(num_feat, num_feat, 3, padding=1, bias=False)
        self.k4 = nn.Conv2d(num_feat, num_feat, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.k4(self.k3(x) * torch.sigmoid(self.k2(x)))


class _Block(nn.Module):
    """Self-calibrated block with pixel attention (SCPA): two half-width branches, joined, and a skip."""

    def __init__(self, num_feat: int) -> None:
        super().__init__()
        half = num_feat // 2
        self.conv1_a = nn.Conv2d(num_feat, half, 1, bias=False)
        self.conv1_b = nn.Conv2d(num_feat, half, 1, bias=False)
        self.k1 = nn.Sequential(nn.Conv2d(half, half, 3, padding=1, bias=False))
        self.PAConv = _AttentionConv(half)
        self.conv3 = nn.Conv2d(num_feat, num_feat, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        a = _activate(self.k1(_activate(self.conv1_a(x))))
        b = _activate(self.PAConv(_activate(self.conv1_b(x))))
        return self.conv3(torch.cat([a, b], dim=1)) + x


class PAN(nn.Module):
    """Pixel attention network; RGB in [0, 1]. At x4 it upsamples twice by 2, at x2 and x3 once.

    Source: Zhao et al., "Efficient Image Super-Resolution Using Pixel Attention", ECCVW 2020.
    """

    def __init__(self, scale: int, num_feat: int, num_up_feat: int, num_block: int) -> None:
        super().__init__()
        self.scale = scale
        self.conv_first = nn.Conv2d(3, num_feat, 3, padding=1)
        self.SCPA_trunk = nn.Sequential(*[_Block(num_feat) for _ in range(num_block)])
        self.trunk_conv = nn.Conv2d(num_feat, num_feat, 3, padding=1)
        for index in range(1, 3 if scale == 4 else 2):
            self.add_module(
                f"upconv{index}", nn.Conv2d(num_feat if index == 1 else num_up_feat, num_up_feat, 3, padding=1)
            )
            self.add_module(f"att{index}", _PixelAttention(num_up_feat))
            self.add_module(f"HRconv{index}", nn.Conv2d(num_up_feat, num_up_feat, 3, padding=1))
        self.conv_last = nn.Conv2d(num_up_feat, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Upscale (B, 3, H, W) to (B, 3, H*scale, W*scale)."""
        out = self.conv_first(x)
        out = out + self.trunk_conv(self.SCPA_trunk(out))
        steps = (2, 2) if self.scale == 4 else (self.scale,)
        for index, factor in enumerate(steps, start=1):
            out = self.get_submodule(f"upconv{index}")(F.interpolate(out, scale_factor=factor, mode="nearest"))
            out = _activate(self.get_submodule(f"att{index}")(out))
            out = _activate(self.get_submodule(f"HRconv{index}")(out))
        anchor = F.interpolate(x, scale_factor=self.scale, mode="bilinear", align_corners=False)
        return self.conv_last(out) + anchor


def _activate(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2)


@register_teacher
class PANOptions(Architecture):
    """Zhao et al. 2020, pixel attention network."""

    type: Literal["pan"] = Field(description="Name of the network.")
    num_feat: Width = Field(40, multiple_of=2, description="Channels of the body.")
    num_up_feat: Width = Field(24, description="Channels of the upsampling part.")
    num_block: Depth = Field(16, description="Self-calibrated pixel attention blocks.")

    def build(self, scale: int) -> nn.Module:
        """The network for RGB."""
        return PAN(scale, self.num_feat, self.num_up_feat, self.num_block)

    @classmethod
    def recognise(cls, state: StateDict) -> tuple[dict[str, Any], tuple[int, ...]] | None:
        """Read off the authors' checkpoints."""
        if "SCPA_trunk.0.PAConv.k2.weight" not in state:
            return None
        options = {
            "num_feat": state["conv_first.weight"].shape[0],
            "num_up_feat": state["upconv1.weight"].shape[0],
            "num_block": sum(key.endswith(".PAConv.k2.weight") for key in state),
        }
        # The networks for x2 and x3 have the same shapes: the weights alone cannot tell which it is.
        return options, (4,) if "upconv2.weight" in state else (2, 3)
