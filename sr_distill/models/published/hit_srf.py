"""HiT-SRF, the SRFormer-based hierarchical transformer of HiT-SR (ECCV 2024)."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ...options.architectures import Architecture, Depth, Width
from ...registry import register_teacher
from ..base import StateDict
from .hit_srf_blocks import Block, Group, to_map, to_tokens

_MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K, subtracted from the input


class _PatchEmbed(nn.Module):
    """A map as normalised tokens, one a pixel."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(to_tokens(x))


class HiTSRF(nn.Module):
    """Hierarchical transformer on the layout of SRFormer-light; RGB in [0, 1]. Groups and blocks give tokens (B, H W, C).

    Source: Zhang et al., "HiT-SR: Hierarchical Transformer for Efficient Image Super-Resolution", ECCV 2024.
    """

    def __init__(self, options: HiTSRFOptions, scale: int) -> None:
        super().__init__()
        width, base = options.embed_dim, options.base_window
        hidden = round(width * options.mlp_ratio)
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)
        self.conv_first = nn.Conv2d(3, width, 3, padding=1)
        self.patch_embed = _PatchEmbed(width)
        self.layers = nn.ModuleList(
            Group(width, [Block(width, heads, window, base, hidden) for window in options.windows[:depth]])
            for depth, heads in zip(options.depths, options.num_heads)
        )
        self.norm = nn.LayerNorm(width)
        self.conv_after_body = nn.Conv2d(width, width, 3, padding=1)
        self.upsample = nn.Sequential(nn.Conv2d(width, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale))
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        """Upscale (B, 3, H, W) to (B, 3, H*scale, W*scale), for any H and W."""
        size = x.shape[-2:]
        first = self.conv_first(x - self.mean)
        tokens = self.patch_embed(first)
        for layer in self.layers:
            tokens = layer(tokens, size)
        out = self.conv_after_body(to_map(self.norm(tokens), size)) + first
        return self.upsample(out) + self.mean


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


@register_teacher
class HiTSRFOptions(Architecture):
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
    def _fits(self) -> HiTSRFOptions:
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

    def build(self, scale: int) -> nn.Module:
        """The network for RGB. Each block mirrors its image up to whole windows by itself: any size will do."""
        return HiTSRF(self, scale)

    @classmethod
    def recognise(cls, state: StateDict) -> tuple[dict[str, Any], tuple[int, ...]] | None:
        """Read off the authors' checkpoints."""
        block = "layers.{}.residual_group.blocks.{}."
        first = block.format(0, 0)
        # HiT-SIR has no convolution in its feed-forward part, HiT-SNG has an n-gram context beside it.
        if first + "correlation.qv.linear.weight" not in state or any("ngram" in key for key in state):
            return None
        width, hidden = (
            state[first + "mlp.fc1.weight"].shape[1],
            state[first + "mlp.dwconv.depthwise_conv.0.weight"].shape[0],
        )
        depths, num_heads = [], []
        while block.format(len(depths), 0) + "correlation.pos.pos3.2.weight" in state:
            group = f"layers.{len(depths)}."
            num_heads.append(state[block.format(len(depths), 0) + "correlation.pos.pos3.2.weight"].shape[0])
            depths.append(sum(key.startswith(group) and key.endswith(".correlation.proj.weight") for key in state))
        # A checkpoint tells how many places a cell has, but not the windows: only the published ones are known.
        published = HiTSRFOptions(type="hit_srf")
        for group, depth in enumerate(depths):
            for index, window in enumerate(published.windows[:depth]):
                ratio = max(1, window // published.base_window)
                if state[block.format(group, index) + "correlation.spatial_linear.weight"].shape[1] != ratio**2:
                    return None
        options = {"embed_dim": width, "depths": depths, "num_heads": num_heads, "mlp_ratio": hidden / width}
        return options, (math.isqrt(state["upsample.0.weight"].shape[0] // 3),)
