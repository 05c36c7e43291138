"""Re-parameterisable blocks, trained in their collapsed form."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class EdgeBlock(nn.Module):
    """Edge-oriented convolution block (ECB): five linear branches that equal one 3x3 convolution.

    The branches are a 3x3 convolution, a 1x1 followed by a 3x3 (hidden width twice the output), and 1x1 convolutions
    followed by scaled Sobel-x, Sobel-y and Laplacian filters. Because all of them are linear, their kernels are added up
    first and a single convolution is run: the extra parameters shape the gradient at almost no cost. The border is treated as
    in the paper, where the inner feature is padded with its bias, so that collapsing is exact there too.

    The parameters carry the names of BasicSR's ECBSR, so that its checkpoints load.

    Source: Zhang et al., "Edge-oriented Convolution Block for Real-time Super Resolution on Mobile Devices", ACM MM
    2021, section 3.2 and equations 5-8.
    """

    def __init__(self, in_channels: int, out_channels: int, activation: bool) -> None:
        super().__init__()
        self.conv3x3 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.conv1x1_3x3 = _Expand(in_channels, out_channels, 2 * out_channels)
        sobel = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])
        laplacian = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])
        self.conv1x1_sbx = _Filter(in_channels, out_channels, sobel)
        self.conv1x1_sby = _Filter(in_channels, out_channels, sobel.t())
        self.conv1x1_lpl = _Filter(in_channels, out_channels, laplacian)
        self.act = nn.PReLU(out_channels) if activation else nn.Identity()

    def collapsed(self) -> tuple[Tensor, Tensor]:
        """Kernel (out, in, 3, 3) and bias (out,) of the equal 3x3 convolution."""
        weight, bias = self.conv3x3.weight, self.conv3x3.bias
        for branch in (self.conv1x1_3x3, self.conv1x1_sbx, self.conv1x1_sby, self.conv1x1_lpl):
            branch_weight, branch_bias = branch.collapsed()
            weight, bias = weight + branch_weight, bias + branch_bias
        return weight, bias

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H, W)."""
        weight, bias = self.collapsed()
        return self.act(F.conv2d(x, weight, bias, padding=1))


def collapse(net: nn.Module) -> nn.Module:
    """A copy of ``net`` with every :class:`EdgeBlock` replaced by its equal 3x3 convolution: the form that is deployed."""
    net = copy.deepcopy(net)
    for name, block in [(name, module) for name, module in net.named_modules() if isinstance(module, EdgeBlock)]:
        weight, bias = block.collapsed()
        conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
        conv.weight, conv.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
        parent, _, child = name.rpartition(".")
        setattr(net.get_submodule(parent), child, nn.Sequential(conv, block.act))
    return net


class _Expand(nn.Module):
    """A 1x1 convolution to ``hidden`` channels, then a 3x3 to ``out_channels``."""

    def __init__(self, in_channels: int, out_channels: int, hidden: int) -> None:
        super().__init__()
        first, second = nn.Conv2d(in_channels, hidden, 1), nn.Conv2d(hidden, out_channels, 3)
        self.k0, self.b0, self.k1, self.b1 = first.weight, first.bias, second.weight, second.bias

    def collapsed(self) -> tuple[Tensor, Tensor]:
        weight = torch.einsum("ohyx,hi->oiyx", self.k1, self.k0[:, :, 0, 0])
        return weight, torch.einsum("ohyx,h->o", self.k1, self.b0) + self.b1


class _Filter(nn.Module):
    """A 1x1 convolution, then a fixed 3x3 filter with a learned factor for each channel."""

    def __init__(self, in_channels: int, out_channels: int, kernel: Tensor) -> None:
        super().__init__()
        first = nn.Conv2d(in_channels, out_channels, 1)
        self.k0, self.b0 = first.weight, first.bias
        self.scale = nn.Parameter(torch.randn(out_channels, 1, 1, 1) * 1e-3)
        self.bias = nn.Parameter(torch.randn(out_channels) * 1e-3)
        self.register_buffer("mask", kernel.expand(out_channels, 1, 3, 3).clone())

    def collapsed(self) -> tuple[Tensor, Tensor]:
        kernel = (self.scale * self.mask)[:, 0]
        weight = torch.einsum("oyx,oi->oiyx", kernel, self.k0[:, :, 0, 0])
        return weight, kernel.sum((1, 2)) * self.b0 + self.bias
