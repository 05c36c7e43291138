"""Convolutions with more weights in training than in use: linear branches that are merged before the convolution runs."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Reparam = Literal["none", "expand", "edge"]


class Collapsible:
    """What is something else in training than in use.

    Attributes:
        rounds: whether it computes in training what it will in 8 bits, not in floats.
    """

    rounds: ClassVar[bool] = False

    def collapse(self) -> nn.Module:
        """The module that takes its place in a network that is not trained any more."""
        raise NotImplementedError


class CollapsibleConv2d(Collapsible, nn.Module):
    """A convolution whose kernel is made of other weights in each step, so that a step costs about what a plain convolution does.

    ``y = K * x + b`` with "same" zero padding and stride 1; with ``identity`` the kernel has 1 added where it passes a channel on to
    itself, which is ``y = K * x + b + x`` at no cost. What the kernel is made of shapes the gradient alone; :func:`collapse`
    leaves it out. This class has the kernel itself.

    Args:
        in_channels, out_channels: of (B, C, H, W).
        kernel_size: odd.
        identity: add the input; only where ``in_channels == out_channels``.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, identity: bool = False) -> None:
        super().__init__()
        self.shape, self.identity = (out_channels, in_channels, kernel_size, kernel_size), identity
        self.make_weights()

    def make_weights(self) -> None:
        """Create what the kernel is made of."""
        out_channels, in_channels, kernel_size, _ = self.shape
        conv = nn.Conv2d(in_channels, out_channels, kernel_size)
        self.weight, self.bias = conv.weight, conv.bias

    def merged(self) -> tuple[Tensor, Tensor]:
        """Kernel and bias made of the weights, without the identity."""
        return self.weight, self.bias

    def collapsed(self) -> tuple[Tensor, Tensor]:
        """Kernel (out, in, k, k) and bias (out,) of the equal convolution."""
        weight, bias = self.merged()
        if self.identity:
            middle = self.shape[-1] // 2
            delta = torch.eye(*self.shape[:2], dtype=weight.dtype, device=weight.device)
            weight = weight + F.pad(delta[:, :, None, None], [middle] * 4)
        return weight, bias

    @torch.no_grad()
    def take(self, weight: Tensor, bias: Tensor) -> None:
        """Become equal to a convolution with this kernel (out, in, k, k) and bias (out,): the inverse of :meth:`collapsed`."""
        now_weight, now_bias = self.collapsed()
        self.add_to_merged(weight - now_weight, bias - now_bias)

    def add_to_merged(self, weight: Tensor, bias: Tensor) -> None:
        """Change the weights such that :meth:`merged` gives this much more."""
        self.weight += weight
        self.bias += bias

    @torch.no_grad()
    def scale_to(self, deviation: float) -> None:
        """Scale the start such that the merged kernel has this standard deviation."""
        factor = deviation / self.merged()[0].std()
        for factors in self.last_factors():
            factors *= factor

    def last_factors(self) -> list[Tensor]:
        """The weights in which the merged kernel is linear: scaling them all scales it."""
        return [self.weight]

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H, W)."""
        weight, bias = self.collapsed()
        return F.conv2d(x, weight, bias, padding=self.shape[-1] // 2)

    def collapse(self) -> nn.Module:
        """See the base class."""
        weight, bias = self.collapsed()
        with torch.device("meta"):  # draws nothing
            conv = nn.Conv2d(self.shape[1], self.shape[0], self.shape[-1], padding=self.shape[-1] // 2)
        conv.weight, conv.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
        return conv


class ExpandedConv2d(CollapsibleConv2d):
    """The product of a k x k convolution to ``hidden`` channels and a 1x1: ``K = W1 W0`` (collapsible linear block).

    Source: Bhardwaj et al., "Collapsible Linear Blocks for Super-Efficient Super Resolution", MLSys 2022, algorithms 1 and 2.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, identity: bool, hidden: int) -> None:
        self.hidden = hidden
        super().__init__(in_channels, out_channels, kernel_size, identity)

    def make_weights(self) -> None:
        """See the base class; Glorot's initialisation as in the paper's code."""
        out_channels, in_channels, kernel_size, _ = self.shape
        self.expand = nn.Parameter(torch.empty(self.hidden, in_channels, kernel_size, kernel_size))
        self.project = nn.Parameter(torch.empty(out_channels, self.hidden))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        nn.init.xavier_uniform_(self.expand)
        nn.init.xavier_uniform_(self.project)

    def merged(self) -> tuple[Tensor, Tensor]:
        """See the base class."""
        if self.expand.stride(1) != 1:
            return (self.project @ self.expand.flatten(1)).view(self.shape), self.bias
        rows = self.expand.permute(0, 2, 3, 1)  # channels_last, and so is the kernel, without a copy: see _in_layout_of
        return (self.project @ rows.flatten(1)).unflatten(1, rows.shape[1:]).permute(0, 3, 1, 2), self.bias

    def add_to_merged(self, weight: Tensor, bias: Tensor) -> None:
        """See the base class; of all changes of the first factor that do it, the smallest. ``hidden`` must not be below ``out``."""
        self.expand += (torch.linalg.pinv(self.project) @ weight.flatten(1)).view_as(self.expand)
        self.bias += bias

    def last_factors(self) -> list[Tensor]:
        """See the base class."""
        return [self.expand]


class EdgeConv2d(CollapsibleConv2d):
    """Edge-oriented convolution: five linear branches that equal one convolution.

    The branches are a k x k convolution, a 1x1 followed by a 3x3 (hidden width twice the output), and 1x1 convolutions followed by
    scaled Sobel-x, Sobel-y and Laplacian filters. The border is treated as in the paper, where the inner feature is padded with
    its bias, so that collapsing is exact there too. The parameters carry the names of BasicSR's ECBSR, so that its checkpoints load.

    Source: Zhang et al., "Edge-oriented Convolution Block for Real-time Super Resolution on Mobile Devices", ACM MM
    2021, section 3.2 and equations 5-8.
    """

    def make_weights(self) -> None:
        """See the base class."""
        out_channels, in_channels, kernel_size, _ = self.shape
        self.conv3x3 = nn.Conv2d(in_channels, out_channels, kernel_size)
        self.conv1x1_3x3 = _Expand(in_channels, out_channels, 2 * out_channels)
        sobel = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])
        laplacian = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])
        self.conv1x1_sbx = _Filter(in_channels, out_channels, sobel)
        self.conv1x1_sby = _Filter(in_channels, out_channels, sobel.t())
        self.conv1x1_lpl = _Filter(in_channels, out_channels, laplacian)

    def merged(self) -> tuple[Tensor, Tensor]:
        """See the base class."""
        expanded, filtered = (
            self.conv1x1_3x3.collapsed(),
            _sum_of_filters(self.conv1x1_sbx, self.conv1x1_sby, self.conv1x1_lpl),
        )
        weight, bias = (one + other for one, other in zip(expanded, filtered))
        margin = (self.shape[-1] - 3) // 2
        weight = self.conv3x3.weight + (F.pad(weight, [margin] * 4) if margin else weight)
        return _in_layout_of(self.conv3x3.weight, weight), self.conv3x3.bias + bias

    def add_to_merged(self, weight: Tensor, bias: Tensor) -> None:
        """See the base class."""
        self.conv3x3.weight += weight
        self.conv3x3.bias += bias

    def last_factors(self) -> list[Tensor]:
        """See the base class."""
        filters = (self.conv1x1_sbx, self.conv1x1_sby, self.conv1x1_lpl)
        return [self.conv3x3.weight, self.conv1x1_3x3.k1, *(branch.scale for branch in filters)]


class EdgeBlock(EdgeConv2d):
    """An edge-oriented 3x3 convolution and its PReLU, under the names of the published ECBSR."""

    def __init__(self, in_channels: int, out_channels: int, activation: bool) -> None:
        super().__init__(in_channels, out_channels, 3)
        self.act = nn.PReLU(out_channels) if activation else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H, W)."""
        return self.act(super().forward(x))

    def collapse(self) -> nn.Module:
        """See the base class."""
        return nn.Sequential(super().collapse(), self.act)


class NearestAnchor(nn.Module):
    """Each channel scale^2 times: after PixelShuffle, the image upscaled by repeating its pixels."""

    def __init__(self, channels: int, scale: int) -> None:
        super().__init__()
        self.channels, self.scale = channels, scale

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C*scale^2, H, W)."""
        return x.repeat_interleave(self.scale**2, dim=1)


def convolution(
    in_channels: int, out_channels: int, kernel_size: int, reparam: Reparam, identity: bool, hidden: int
) -> CollapsibleConv2d:
    """A convolution whose kernel is itself (none), a product (expand), or a sum of branches (edge).

    Args:
        identity: add the input where the numbers of channels agree.
        hidden: expand: the width between the two factors.
    """
    identity = identity and in_channels == out_channels
    if reparam == "expand":
        return ExpandedConv2d(in_channels, out_channels, kernel_size, identity, hidden)
    kind = EdgeConv2d if reparam == "edge" else CollapsibleConv2d
    return kind(in_channels, out_channels, kernel_size, identity)


def collapse(net: nn.Module) -> nn.Module:
    """A copy of ``net`` with every :class:`Collapsible` replaced by the plain convolution: the form that is deployed."""
    net = copy.deepcopy(net)
    for name, module in [(name, module) for name, module in net.named_modules() if isinstance(module, Collapsible)]:
        net.set_submodule(name, module.collapse())
    return net


@torch.no_grad()
def fill(net: nn.Module, plain: Mapping[str, Tensor]) -> list[str]:
    """Make a network equal to a collapsed one, whose weights these are.

    Returns:
        The names of weights that stay as they are, because those of the other have another shape.
    """
    convs = {name: module for name, module in net.named_modules() if isinstance(module, CollapsibleConv2d)}
    inside = tuple(f"{name}." for name in convs)
    others = {name: value for name, value in net.state_dict().items() if not name.startswith(inside)}
    left = [name for name, value in others.items() if plain[name].shape != value.shape]
    for name, value in others.items():
        if name not in left:
            value.copy_(plain[name])
    for name, conv in convs.items():
        weight, bias = plain[f"{name}.weight"], plain[f"{name}.bias"]
        if weight.shape == conv.shape:
            conv.take(weight, bias)
        else:
            left.append(name)
    return left


def _in_layout_of(weight: Tensor, kernel: Tensor) -> Tensor:
    """The kernel in the memory layout of a weight, which is that of the network's maps: a convolution with another one is slower.

    Where there is one input channel, the strides alone tell the layouts apart, and ``contiguous`` changes nothing.
    """
    if weight.stride(1) != 1:
        return kernel
    return kernel.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format).permute(0, 3, 1, 2)


class _Expand(nn.Module):
    """A 1x1 convolution to ``hidden`` channels, then a 3x3 to ``out_channels``."""

    def __init__(self, in_channels: int, out_channels: int, hidden: int) -> None:
        super().__init__()
        first, second = nn.Conv2d(in_channels, hidden, 1), nn.Conv2d(hidden, out_channels, 3)
        self.k0, self.b0, self.k1, self.b1 = first.weight, first.bias, second.weight, second.bias

    def collapsed(self) -> tuple[Tensor, Tensor]:
        first, second = self.k0.flatten(1), self.k1.flatten(2)
        weight = (first.t() @ second).unflatten(2, self.k1.shape[2:])
        return weight, self.b1 + second.sum(2) @ self.b0


class _Filter(nn.Module):
    """A 1x1 convolution, then a fixed 3x3 filter with a learned factor for each channel."""

    def __init__(self, in_channels: int, out_channels: int, kernel: Tensor) -> None:
        super().__init__()
        first = nn.Conv2d(in_channels, out_channels, 1)
        self.k0, self.b0 = first.weight, first.bias
        self.scale = nn.Parameter(torch.randn(out_channels, 1, 1, 1) * 1e-3)
        self.bias = nn.Parameter(torch.randn(out_channels) * 1e-3)
        self.register_buffer("mask", kernel.expand(out_channels, 1, 3, 3).clone())


def _sum_of_filters(*filters: _Filter) -> tuple[Tensor, Tensor]:
    """Kernel and bias of several filters, whose outputs are added."""
    kernels = torch.stack([filter.scale * filter.mask for filter in filters], dim=-1).squeeze(1)  # out, 3, 3, filter
    mixes = torch.stack([filter.k0.flatten(1) for filter in filters], dim=1)  # out, filter, in
    weight = (kernels.flatten(1, 2) @ mixes).transpose(1, 2).unflatten(2, kernels.shape[1:3])
    inner = torch.stack([filter.b0 for filter in filters], dim=1)
    return weight, (kernels.sum((1, 2)) * inner).sum(1) + sum(filter.bias for filter in filters)
