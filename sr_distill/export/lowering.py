"""How operators that not every runtime has, or has fast, are written as others that are equal to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.blocks import NearestAnchor


@dataclass(frozen=True)
class Lowering:
    """What is written how.

    Attributes:
        anchor: the nearest-neighbour copy of the input: repeated channels, or a 1x1 convolution with ones.
        shuffle: PixelShuffle as itself (most runtimes have depth-to-space), or as a transposed convolution with ones, where a GPU refuses
            tensors of more than four dimensions.
        prelu: as itself, or as ``relu(x) - a relu(-x)``.
    """

    anchor: Literal["repeat", "conv"] = "conv"
    shuffle: Literal["shuffle", "transposed"] = "shuffle"
    prelu: Literal["prelu", "relu"] = "prelu"


def lower(net: nn.Module, lowering: Lowering) -> nn.Module:
    """Replace modules of ``net``, which is changed, by what is said; the outputs stay equal."""
    for name, module in list(net.named_modules()):
        replacement = _replacement(module, lowering)
        if replacement is not None:
            if not name:
                return replacement
            net.set_submodule(name, replacement)
    return net


def _replacement(module: nn.Module, lowering: Lowering) -> nn.Module | None:
    if isinstance(module, NearestAnchor) and lowering.anchor == "conv":
        return anchor_as_convolution(module.channels, module.scale)
    if isinstance(module, nn.PixelShuffle) and lowering.shuffle == "transposed":
        return ShuffleByConvolution(module.upscale_factor)
    if isinstance(module, nn.PReLU) and lowering.prelu == "relu":
        return PReLUByReLU(module)
    return None


def anchor_as_convolution(channels: int, scale: int) -> nn.Conv2d:
    """``x.repeat_interleave(scale^2, dim=1)`` as a 1x1 convolution."""
    conv = nn.Conv2d(channels, channels * scale**2, 1, bias=False)
    ones = torch.eye(channels).repeat_interleave(scale**2, dim=0)
    conv.weight = nn.Parameter(ones[:, :, None, None], requires_grad=False)
    return conv


class ShuffleByConvolution(nn.Module):
    """PixelShuffle as a transposed convolution of stride ``scale``, each kernel of which has a single one."""

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("kernel", torch.eye(scale**2).view(scale**2, 1, scale, scale))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C*scale^2, H, W) to (B, C, H*scale, W*scale)."""
        groups = x.shape[1] // self.scale**2
        return F.conv_transpose2d(x, self.kernel.repeat(groups, 1, 1, 1), stride=self.scale, groups=groups)


class PReLUByReLU(nn.Module):
    """``relu(x) - a relu(-x)``: PReLU for GPUs of phones that refuse it."""

    def __init__(self, prelu: nn.PReLU) -> None:
        super().__init__()
        self.slope = nn.Parameter(prelu.weight.detach().view(1, -1, 1, 1), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), any range."""
        return F.relu(x) - self.slope * F.relu(-x)
