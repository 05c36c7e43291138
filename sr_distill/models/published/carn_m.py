"""CARN-M, the mobile variant of the cascading residual network."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from ...options.architectures import Architecture, Width
from ...registry import register_teacher
from ..base import StateDict

_SCALES = (2, 3, 4)
_MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K, RGB


class _Shift(nn.Module):
    """Adds ``sign`` times the mean colour; a fixed 1x1 convolution, as in the authors' checkpoints."""

    def __init__(self, sign: int) -> None:
        super().__init__()
        self.shifter = nn.Conv2d(3, 3, 1).requires_grad_(False)
        self.shifter.weight.copy_(torch.eye(3)[:, :, None, None])
        self.shifter.bias.copy_(sign * torch.tensor(_MEAN))

    def forward(self, x: Tensor) -> Tensor:
        return self.shifter(x)


class _Body(nn.Module):
    """Layers in a row, called ``body``."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class _Residual(_Body):
    """Efficient residual block: two 3x3 group convolutions, a 1x1, a skip and a ReLU."""

    def __init__(self, num_feat: int, groups: int) -> None:
        super().__init__(
            nn.Conv2d(num_feat, num_feat, 3, padding=1, groups=groups),
            nn.ReLU(),
            nn.Conv2d(num_feat, num_feat, 3, padding=1, groups=groups),
            nn.ReLU(),
            nn.Conv2d(num_feat, num_feat, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + x)


class _Cascade(nn.Module):
    """Three steps; after each, a 1x1 (``c1`` ...) joins its output with the input and the outputs of all steps before."""

    def __init__(self, num_feat: int) -> None:
        super().__init__()
        self.c1 = _Body(nn.Conv2d(2 * num_feat, num_feat, 1), nn.ReLU())
        self.c2 = _Body(nn.Conv2d(3 * num_feat, num_feat, 1), nn.ReLU())
        self.c3 = _Body(nn.Conv2d(4 * num_feat, num_feat, 1), nn.ReLU())

    def cascade(self, x: Tensor, *steps: nn.Module) -> Tensor:
        """(B, C, H, W) through three steps that keep the shape."""
        seen = x
        for step, join in zip(steps, (self.c1, self.c2, self.c3)):
            seen = torch.cat([seen, step(x)], dim=1)
            x = join(seen)
        return x


class _Block(_Cascade):
    """A cascade of one residual block, run three times with the same weights."""

    def __init__(self, num_feat: int, groups: int) -> None:
        super().__init__(num_feat)
        self.b1 = _Residual(num_feat, groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.cascade(x, self.b1, self.b1, self.b1)


def _upsampler(scale: int, num_feat: int, groups: int) -> nn.Module:
    layers: list[nn.Module] = []
    for factor in (2, 2) if scale == 4 else (scale,):
        conv = nn.Conv2d(num_feat, num_feat * factor**2, 3, padding=1, groups=groups)
        layers += [conv, nn.ReLU(), nn.PixelShuffle(factor)]
    return _Body(*layers)


class CARNM(_Cascade):
    """Cascading residual network, mobile variant; RGB in [0, 1].

    The authors trained one network with an upsampler for each scale. This one has that of its own scale only, so that every weight is
    trained and a saved file holds nothing else; of the authors' checkpoint it takes what it has and leaves the other two upsamplers.

    Source: Ahn et al., "Fast, Accurate, and Lightweight Super-Resolution with Cascading Residual Network", ECCV 2018.
    """

    def __init__(self, scale: int, num_feat: int, groups: int) -> None:
        super().__init__(num_feat)
        self.scale = scale
        self.sub_mean = _Shift(-1)
        self.entry = nn.Conv2d(3, num_feat, 3, padding=1)
        self.b1 = _Block(num_feat, groups)
        self.b2 = _Block(num_feat, groups)
        self.b3 = _Block(num_feat, groups)
        self.upsample = nn.ModuleDict({f"up{scale}": _upsampler(scale, num_feat, groups)})
        self.exit = nn.Conv2d(num_feat, 3, 3, padding=1)
        self.add_mean = _Shift(1)

    def forward(self, x: Tensor) -> Tensor:
        """Upscale (B, 3, H, W) to (B, 3, H*scale, W*scale)."""
        out = self.cascade(self.entry(self.sub_mean(x)), self.b1, self.b2, self.b3)
        return self.add_mean(self.exit(self.upsample[f"up{self.scale}"](out)))

    def load_state_dict(self, state_dict: StateDict, strict: bool = True, assign: bool = False) -> Any:
        """As of every module, but upsamplers of other scales may be there and are left out."""
        others = tuple(f"upsample.up{scale}." for scale in _SCALES if scale != self.scale)
        own = {key: value for key, value in state_dict.items() if not key.startswith(others)}
        return super().load_state_dict(own, strict=strict, assign=assign)


@register_teacher
class CARNMOptions(Architecture):
    """Ahn et al. 2018, CARN-M: cascading residual network, mobile variant."""

    type: Literal["carn_m"] = Field(description="Name of the network.")
    num_feat: Width = Field(64, description="Channels of the body.")
    groups: int = Field(4, ge=1, description="Groups of the 3x3 convolutions in blocks and upsampler.")

    @model_validator(mode="after")
    def _divides(self) -> CARNMOptions:
        if self.num_feat % self.groups:
            raise ValueError(f"num_feat {self.num_feat} is not a multiple of groups {self.groups}")
        return self

    scales = _SCALES

    def build(self, scale: int) -> nn.Module:
        """The network for RGB."""
        return CARNM(scale, self.num_feat, self.groups)

    @classmethod
    def recognise(cls, state: StateDict) -> tuple[dict[str, Any], tuple[int, ...]] | None:
        """Read off the authors' checkpoints."""
        # CARN itself has three residual blocks (b1, b2, b3) in a block.
        if (
            "b1.b1.body.4.weight" not in state
            or "b1.b2.body.0.weight" in state
            or "sub_mean.shifter.weight" not in state
        ):
            return None
        num_feat, in_group = state["b1.b1.body.0.weight"].shape[:2]
        scales = tuple(scale for scale in _SCALES if f"upsample.up{scale}.body.0.weight" in state)
        return ({"num_feat": num_feat, "groups": num_feat // in_group}, scales) if scales else None
