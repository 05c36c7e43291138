"""The only door to the ``basicsr`` package."""

from __future__ import annotations

import importlib
import sys
import types
from typing import Literal

from pydantic import Field, model_validator
from torch import nn

from ..errors import UserError
from ..options.architectures import Architecture, Color, Depth, Width
from ..registry import register_student, register_teacher


def import_basicsr(module: str) -> types.ModuleType:
    """Import ``basicsr.<module>``.

    basicsr 1.4.2, the last release, imports ``torchvision.transforms.functional_tensor``, which torchvision removed in 0.17 (fixed
    in its repository in 2024, never released). The one function it takes from there lives in ``functional`` today.

    Raises:
        UserError: basicsr is not installed, or cannot be imported; with the reason.
    """
    alias = "torchvision.transforms.functional_tensor"
    try:
        if alias not in sys.modules:
            from torchvision.transforms.functional import rgb_to_grayscale

            stand_in = types.ModuleType(alias)
            stand_in.rgb_to_grayscale = rgb_to_grayscale  # type: ignore[attr-defined]
            sys.modules[alias] = stand_in
        return importlib.import_module(f"basicsr.{module}")
    except ImportError as error:
        raise UserError(
            f"the package basicsr cannot be imported ({error}). The networks rcan, rrdbnet, swinir, msrresnet and compact and the metric niqe "
            "are from it. pip install basicsr; on Python 3.13 and newer, where pip alone cannot build it: bash scripts/quickstart.sh in a "
            "clone of sr_distill makes .venv with it, or take Python 3.10-3.12."
        ) from error


@register_student
class CompactOptions(Architecture):
    """SRVGGNetCompact of Real-ESRGAN: plain VGG-style convolutions with PReLU."""

    type: Literal["compact"] = Field(description="Name of the network.")
    color: Color = "rgb"
    num_feat: Width = Field(64, description="Channels of the body.")
    num_block: Depth = Field(16, description="Number of 3x3 convolutions in the body (num_conv in the original).")
    activation: Literal["relu", "prelu", "leakyrelu"] = Field("prelu", description="Activation after each convolution.")

    def build(self, scale: int) -> nn.Module:
        """The network of basicsr."""
        channels = 3 if self.color == "rgb" else 1
        arch = import_basicsr("archs.srvgg_arch")
        return arch.SRVGGNetCompact(channels, channels, self.num_feat, self.num_block, scale, self.activation)


@register_teacher
class RCANOptions(Architecture):
    """Zhang et al. 2018, residual channel attention network."""

    type: Literal["rcan"] = Field(description="Name of the network.")
    num_feat: Width = Field(64, description="Channels of the body.")
    num_group: Depth = Field(10, description="Residual groups.")
    num_block: Depth = Field(20, description="Residual blocks in a group.")
    squeeze_factor: int = Field(16, ge=1, description="Channel reduction inside the attention.")

    @model_validator(mode="after")
    def _something_is_left(self) -> RCANOptions:
        if self.squeeze_factor > self.num_feat:
            raise ValueError(f"squeeze_factor {self.squeeze_factor} leaves nothing of num_feat {self.num_feat}")
        return self

    def build(self, scale: int) -> nn.Module:
        """The network of basicsr."""
        arch = import_basicsr("archs.rcan_arch")
        return arch.RCAN(3, 3, self.num_feat, self.num_group, self.num_block, self.squeeze_factor, scale)


@register_teacher
class RRDBNetOptions(Architecture):
    """Wang et al. 2018, the generator of ESRGAN (x2 and x4)."""

    type: Literal["rrdbnet"] = Field(description="Name of the network.")
    num_feat: Width = Field(64, description="Channels of the body.")
    num_block: Depth = Field(23, description="Residual-in-residual dense blocks.")
    num_grow_ch: Width = Field(32, description="Growth of a dense layer.")

    scales = (2, 4)

    def build(self, scale: int) -> nn.Module:
        """The network of basicsr."""
        arch = import_basicsr("archs.rrdbnet_arch")
        return arch.RRDBNet(3, 3, scale, self.num_feat, self.num_block, self.num_grow_ch)

    def size_multiple(self, scale: int) -> int:
        """2 at x2, where the input is first folded 2 to 1 into the channels."""
        return 2 if scale == 2 else 1


@register_teacher
class SwinIROptions(Architecture):
    """Liang et al. 2021; the defaults are the lightweight SwinIR-S."""

    type: Literal["swinir"] = Field(description="Name of the network.")
    embed_dim: Width = Field(60, description="Channels of the tokens.")
    depths: list[Depth] = Field([6, 6, 6, 6], description="Swin layers in each residual group.")
    num_heads: list[Depth] = Field([6, 6, 6, 6], description="Attention heads in each residual group.")
    window_size: int = Field(8, ge=2, description="Side of the attention window; inputs are padded to a multiple.")
    mlp_ratio: float = Field(2.0, gt=0, description="Hidden size of the MLP over embed_dim.")
    upsampler: Literal["pixelshuffledirect", "pixelshuffle"] = Field(
        "pixelshuffledirect", description="Upsampling module."
    )

    @model_validator(mode="after")
    def _same_length(self) -> SwinIROptions:
        if len(self.depths) != len(self.num_heads):
            raise ValueError(
                f"depths has {len(self.depths)} entries and num_heads {len(self.num_heads)}; give one of each for every group"
            )
        if any(self.embed_dim % heads for heads in self.num_heads):
            raise ValueError(
                f"embed_dim {self.embed_dim} is not a multiple of every entry of num_heads {self.num_heads}"
            )
        return self

    def build(self, scale: int) -> nn.Module:
        """The network of basicsr."""
        arch = import_basicsr("archs.swinir_arch")
        return arch.SwinIR(
            img_size=8 * self.window_size,
            embed_dim=self.embed_dim,
            depths=self.depths,
            num_heads=self.num_heads,
            window_size=self.window_size,
            mlp_ratio=self.mlp_ratio,
            upscale=scale,
            upsampler=self.upsampler,
        )

    def size_multiple(self, scale: int) -> int:
        """The window."""
        return self.window_size


@register_teacher
class MSRResNetOptions(Architecture):
    """Modified SRResNet of BasicSR."""

    type: Literal["msrresnet"] = Field(description="Name of the network.")
    num_feat: Width = Field(64, description="Channels of the body.")
    num_block: Depth = Field(16, description="Residual blocks.")

    def build(self, scale: int) -> nn.Module:
        """The network of basicsr."""
        arch = import_basicsr("archs.srresnet_arch")
        return arch.MSRResNet(3, 3, self.num_feat, self.num_block, scale)
