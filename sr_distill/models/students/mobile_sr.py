"""mobile_sr: a chain of convolutions that collapses to what every phone runtime runs, on an upscaled copy of the input."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ...options.architectures import Architecture, Color, Depth, Width
from ...registry import register_student
from ..blocks import CollapsibleConv2d, NearestAnchor, Reparam, convolution

_ACTIVATIONS = {"relu": nn.ReLU, "prelu": nn.PReLU, "silu": nn.SiLU}


class MobileSR(nn.Module):
    """``h = head(x)``, ``clip(shuffle(tail(body(h) + h) + anchor(x)))``.

    ``head`` and each of ``body`` are a convolution and its activation, ``tail`` a convolution. Each convolution may be
    over-parameterised in training, and passes its input on where the channels agree; both are part of its kernel once it is collapsed.
    The anchor gives each channel scale^2 times, which after PixelShuffle is the nearest-neighbour upscaled input, or is a learned
    linear filter that starts as such. The image-space residual and the clip keep the output in range after quantisation
    to 8 bits. The clip is left out in training, where it would stop the gradient of pixels that are out of range.

    Args:
        channels: 3 for RGB, 1 for luma; values in [0, 1].
        options: of the network.

    Sources: the body, Bhardwaj et al., "Collapsible Linear Blocks for Super-Efficient Super Resolution" (SESR), MLSys 2022, section 3;
    the anchor, Du et al., "Anchor-based Plain Net for Mobile Image Super-Resolution", CVPRW 2021.
    """

    def __init__(self, scale: int, channels: int, options: MobileSROptions) -> None:
        super().__init__()
        self.scale, self.long_skip, width = scale, options.long_skip, options.num_feat

        def conv(in_channels: int, out_channels: int, kernel_size: int, identity: bool = False) -> CollapsibleConv2d:
            return convolution(in_channels, out_channels, kernel_size, options.reparam, identity, options.hidden)

        def block(in_channels: int, kernel_size: int, identity: bool = False) -> nn.Sequential:
            activation = _ACTIVATIONS[options.activation]
            return nn.Sequential(
                conv(in_channels, width, kernel_size, identity),
                activation(width) if activation is nn.PReLU else activation(),
            )

        self.head = block(channels, options.head_kernel)
        self.body = nn.Sequential(*(block(width, 3, options.identity) for _ in range(options.num_block)))
        self.tail = conv(width, channels * scale**2, options.tail_kernel)
        self.anchor = _LearnedAnchor(channels, scale) if options.anchor == "learned" else NearestAnchor(channels, scale)
        self.upsampler = nn.PixelShuffle(scale)
        for conv, _ in self.body:
            if not conv.identity:  # He et al. 2015: else the signal dies on its way through the body
                conv.scale_to(math.sqrt(2 / (9 * width)))

    def forward(self, x: Tensor) -> Tensor:
        """Upscale (B, channels, H, W) to (B, channels, H*scale, W*scale)."""
        head = self.head(x)
        feature = self.body(head)
        sr = self.upsampler(self.tail(feature + head if self.long_skip else feature) + self.anchor(x))
        return sr if self.training else sr.clamp(0, 1)


class _LearnedAnchor(nn.Conv2d):
    """A linear 5x5 filter from the image to the sub-pixels, which starts as the nearest neighbour."""

    def __init__(self, channels: int, scale: int) -> None:
        super().__init__(channels, channels * scale**2, 5, padding=2, bias=False)
        with torch.no_grad():
            self.weight.zero_()
            self.weight[:, :, 2, 2] = torch.eye(channels).repeat_interleave(scale**2, dim=0)


@register_student
class MobileSROptions(Architecture):
    """Collapsible convolutions and an anchor; every phone runtime runs it. mobile_sr_tiny, _base and _large are its named sizes."""

    type: Literal["mobile_sr"] = Field(description="Name of the network.")
    color: Color = "rgb"
    num_feat: Width = Field(16, description="Channels of the body.")
    num_block: Depth = Field(10, description="Number of 3x3 convolutions between the first and the last.")
    head_kernel: Literal[3, 5] = Field(3, description="Side of the first convolution's kernels.")
    tail_kernel: Literal[3, 5] = Field(5, description="Side of the last convolution's kernels.")
    reparam: Reparam = Field(
        "expand",
        description="What kernels are made of in training. none: themselves; expand: a product, through a wide layer; edge: a sum of "
        "branches, among them Sobel and Laplacian filters.",
    )
    hidden: Width = Field(128, description="expand: the width between the two factors.")
    identity: bool = Field(True, description="Each convolution of the body passes its input on; part of its kernel.")
    long_skip: bool = Field(True, description="Add the first map to the last.")
    anchor: Literal["nearest", "learned"] = Field(
        "nearest",
        description="What the network adds to: the nearest-neighbour upscaled input, or a learned 5x5 filter of it.",
    )
    activation: Literal["relu", "prelu", "silu"] = Field(
        "relu",
        description="relu runs everywhere and quantises best; GPUs of phones reject prelu; silu is the slowest, and brought nothing.",
    )

    only_with: ClassVar[Mapping[str, tuple[str, tuple[Any, ...]]]] = {"hidden": ("reparam", ("expand",))}

    def build(self, scale: int) -> nn.Module:
        """The network for RGB or luma."""
        return MobileSR(scale, 3 if self.color == "rgb" else 1, self)

    def collapsed(self) -> MobileSROptions:
        """With plain kernels, of which the identity is a part."""
        plain = {"reparam": "none", "identity": False, "hidden": type(self).model_fields["hidden"].default}
        return self.model_copy(update=plain)


class _NamedSize(MobileSROptions):
    """A mobile_sr whose shape follows from its name and its ``color``, unless it is given."""

    color: Color = "y"

    shapes: ClassVar[Mapping[str, Mapping[str, int]]]

    @model_validator(mode="before")
    @classmethod
    def _shape_of_the_color(cls, tree: Any) -> Any:
        color = tree.get("color", "y") if isinstance(tree, dict) else None
        return {**cls.shapes[color], **tree} if color in cls.shapes else tree


@register_student
class MobileSRTinyOptions(_NamedSize):
    """mobile_sr of at most 30 K weights."""

    type: Literal["mobile_sr_tiny"] = Field(description="Name of the network.")

    shapes = {
        "y": {"num_feat": 16, "num_block": 10},
        "rgb": {"num_feat": 16, "num_block": 9, "tail_kernel": 3},
    }


@register_student
class MobileSRBaseOptions(_NamedSize):
    """mobile_sr of at most 62 K weights, below which the processors for networks in phones get no faster."""

    type: Literal["mobile_sr_base"] = Field(description="Name of the network.")

    shapes = {
        "y": {"num_feat": 24, "num_block": 10},
        "rgb": {"num_feat": 24, "num_block": 9, "tail_kernel": 3},
    }


@register_student
class MobileSRLargeOptions(_NamedSize):
    """mobile_sr of at most 165 K weights."""

    type: Literal["mobile_sr_large"] = Field(description="Name of the network.")

    shapes = {
        "y": {"num_feat": 32, "num_block": 16},
        "rgb": {"num_feat": 32, "num_block": 16, "tail_kernel": 3},
    }
