"""Options of the networks: one class each, chosen by ``type``. Defaults are those of the papers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from .base import Options

Color = Annotated[
    Literal["rgb", "y"],
    Field(description="rgb: the network upscales RGB. y: it upscales luma (BT.601); chroma is upscaled by bicubic."),
]
Width = Annotated[int, Field(ge=1, le=1024)]
Depth = Annotated[int, Field(ge=1, le=256)]


class MobileSR(Options):
    """Plain 3x3 convolutions and a nearest-neighbour anchor; every phone runtime runs it."""

    type: Literal["mobile_sr"] = Field(description="Name of the network.")
    color: Color = "rgb"
    num_feat: Width = Field(32, description="Channels of the body.")
    num_block: Depth = Field(4, description="Number of 3x3 convolutions between the first and the last.")
    activation: Literal["relu", "prelu"] = Field("relu", description="relu quantises best; prelu fits a little better.")


class FSRCNN(Options):
    """Dong et al. 2016, FSRCNN(d, s, m); d=56, s=12, m=4 is the paper's (12 K parameters)."""

    type: Literal["fsrcnn"] = Field(description="Name of the network.")
    color: Color = "y"
    num_feat: Width = Field(56, description="d: channels of the feature and the deconvolution layer.")
    num_shrink: Width = Field(12, description="s: channels of the mapping layers.")
    num_block: Depth = Field(4, description="m: number of mapping layers.")


class ECBSR(Options):
    """Zhang et al. 2021, ECBSR-M<num_block>C<num_feat>; re-parameterised 3x3 convolutions."""

    type: Literal["ecbsr"] = Field(description="Name of the network.")
    color: Color = "y"
    num_feat: Width = Field(16, description="C: channels of the body.")
    num_block: Depth = Field(4, description="M: number of edge-oriented blocks in the body.")


class Compact(Options):
    """SRVGGNetCompact of Real-ESRGAN: plain VGG-style convolutions with PReLU."""

    type: Literal["compact"] = Field(description="Name of the network.")
    color: Color = "rgb"
    num_feat: Width = Field(64, description="Channels of the body.")
    num_block: Depth = Field(16, description="Number of 3x3 convolutions in the body (num_conv in the original).")
    activation: Literal["relu", "prelu", "leakyrelu"] = Field("prelu", description="Activation after each convolution.")


class EDSR(Options):
    """Lim et al. 2017; the defaults are EDSR-baseline."""

    type: Literal["edsr"] = Field(description="Name of the network.")
    num_feat: Width = Field(64, description="Channels of the body.")
    num_block: Depth = Field(16, description="Residual blocks.")
    res_scale: float = Field(1.0, gt=0, le=1, description="Factor on each residual (0.1 for the 256-channel EDSR).")


class RCAN(Options):
    """Zhang et al. 2018, residual channel attention network."""

    type: Literal["rcan"] = Field(description="Name of the network.")
    num_feat: Width = Field(64, description="Channels of the body.")
    num_group: Depth = Field(10, description="Residual groups.")
    num_block: Depth = Field(20, description="Residual blocks in a group.")
    squeeze_factor: int = Field(16, ge=1, description="Channel reduction inside the attention.")


class RRDBNet(Options):
    """Wang et al. 2018, the generator of ESRGAN (x2 and x4)."""

    type: Literal["rrdbnet"] = Field(description="Name of the network.")
    num_feat: Width = Field(64, description="Channels of the body.")
    num_block: Depth = Field(23, description="Residual-in-residual dense blocks.")
    num_grow_ch: Width = Field(32, description="Growth of a dense layer.")


class SwinIR(Options):
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
    def _same_length(self) -> SwinIR:
        if len(self.depths) != len(self.num_heads):
            raise ValueError(
                f"depths has {len(self.depths)} entries and num_heads {len(self.num_heads)}; give one of each for every group"
            )
        if any(self.embed_dim % heads for heads in self.num_heads):
            raise ValueError(
                f"embed_dim {self.embed_dim} is not a multiple of every entry of num_heads {self.num_heads}"
            )
        return self


class MSRResNet(Options):
    """Modified SRResNet of BasicSR."""

    type: Literal["msrresnet"] = Field(description="Name of the network.")
    num_feat: Width = Field(64, description="Channels of the body.")
    num_block: Depth = Field(16, description="Residual blocks.")


class RLFN(Options):
    """Kong et al. 2022, residual local feature network; works on 0-255 inside."""

    type: Literal["rlfn"] = Field(description="Name of the network.")
    num_feat: Width = Field(
        52, description="Channels of the body (52 for RLFN, 48 for RLFN-S, 46 for the NTIRE 2022 entry)."
    )
    num_mid: Width | None = Field(
        None, description="Channels inside a block; None: as num_feat (48 for the NTIRE 2022 entry)."
    )
    num_block: Depth = Field(6, description="Residual local feature blocks.")


class IMDN(Options):
    """Hui et al. 2019, information multi-distillation network."""

    type: Literal["imdn"] = Field(description="Name of the network.")
    num_feat: Width = Field(64, multiple_of=16, description="Channels of the body.")
    num_block: Depth = Field(6, description="Information multi-distillation blocks.")


class PAN(Options):
    """Zhao et al. 2020, pixel attention network."""

    type: Literal["pan"] = Field(description="Name of the network.")
    num_feat: Width = Field(40, multiple_of=2, description="Channels of the body.")
    num_up_feat: Width = Field(24, description="Channels of the upsampling part.")
    num_block: Depth = Field(16, description="Self-calibrated pixel attention blocks.")


class CARNM(Options):
    """Ahn et al. 2018, CARN-M: cascading residual network, mobile variant."""

    type: Literal["carn_m"] = Field(description="Name of the network.")
    num_feat: Width = Field(64, description="Channels of the body.")
    groups: int = Field(4, ge=1, description="Groups of the 3x3 convolutions in blocks and upsampler.")

    @model_validator(mode="after")
    def _divides(self) -> CARNM:
        if self.num_feat % self.groups:
            raise ValueError(f"num_feat {self.num_feat} is not a multiple of groups {self.groups}")
        return self


class RFDN(Options):
    """Liu et al. 2020, residual feature distillation network; works on 0-255 inside."""

    type: Literal["rfdn"] = Field(description="Name of the network.")
    num_feat: Width = Field(50, ge=4, description="Channels of the body.")
    num_block: Depth = Field(4, description="Residual feature distillation blocks.")


class EFDN(Options):
    """Wang 2022, edge-enhanced feature distillation network in its deployed form (plain 3x3 convolutions)."""

    type: Literal["efdn"] = Field(description="Name of the network.")
    num_feat: Width = Field(48, ge=4, description="Channels of the body.")


class BSRN(Options):
    """Li et al. 2022, blueprint separable residual network; the defaults are the NTIRE 2022 entry (BSRN-S)."""

    type: Literal["bsrn"] = Field(description="Name of the network.")
    num_feat: Width = Field(48, ge=4, description="Channels of the body.")
    num_block: Depth = Field(5, description="Efficient separable distillation blocks.")


class HiTSRF(Options):
    """Zhang et al. 2024, HiT-SRF: a transformer with windows that grow from block to block (866 K parameters at x4)."""

    type: Literal["hit_srf"] = Field(description="Name of the network.")
    embed_dim: int = Field(60, ge=16, le=1024, description="Channels of the tokens.")
    depths: list[Depth] = Field([6, 6, 6, 6], description="Transformer blocks in each residual group.")
    num_heads: list[Depth] = Field([6, 6, 6, 6], description="Heads of the spatial correlation in each residual group.")
    windows: list[Width] = Field(
        [4, 8, 16, 32, 48, 64], description="Side of the window in the first, second, ... block of each group."
    )
    base_window: Width = Field(
        8, description="Values of a larger window are gathered into base_window x base_window cells."
    )
    mlp_ratio: float = Field(2.0, gt=0, description="Hidden size of the feed-forward part over embed_dim.")

    @model_validator(mode="after")
    def _fits(self) -> HiTSRF:
        if len(self.depths) != len(self.num_heads):
            raise ValueError(
                f"depths has {len(self.depths)} entries and num_heads {len(self.num_heads)}; give one of each for every group"
            )
        if any(self.embed_dim % (2 * heads) for heads in self.num_heads):
            raise ValueError(
                f"embed_dim {self.embed_dim} is not a multiple of twice every entry of num_heads {self.num_heads}"
            )
        if any(depth > len(self.windows) for depth in self.depths):
            raise ValueError(
                f"windows has {len(self.windows)} entries; give one for every block of the depths {self.depths}"
            )
        if any(window > self.base_window and window % self.base_window for window in self.windows):
            raise ValueError(f"windows {self.windows} above base_window {self.base_window} must be multiples of it")
        return self


ArchitectureOptions = Annotated[
    MobileSR
    | FSRCNN
    | ECBSR
    | Compact
    | EDSR
    | RCAN
    | RRDBNet
    | SwinIR
    | MSRResNet
    | RLFN
    | IMDN
    | PAN
    | CARNM
    | RFDN
    | EFDN
    | BSRN
    | HiTSRF,
    Field(discriminator="type"),
]
