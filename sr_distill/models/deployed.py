"""A network as it is used: fused, its memory laid out for convolutions, its conversion of colours in two of them."""

from __future__ import annotations

import copy
import itertools

import torch
from torch import Tensor, nn

from ..data.color import rgb_to_gray
from .base import SRModel
from .blocks import CollapsibleConv2d
from .luma import LumaAndChroma, framed


class Deployed(nn.Module):
    """A model that upscales and learns no more: the outputs of :class:`SRModel`, sooner.

    Args:
        model: is left as it is: this has a copy of its network. One that this package did not build may not take being copied: it is shared,
            and should be in eval mode.

    Attributes:
        spec: the contract of the network.
        autocast: as of :class:`SRModel`.
    """

    def __init__(self, model: SRModel) -> None:
        super().__init__()
        fused = model.collapsed()
        own = fused.spec.architecture is not None
        self.model = SRModel(_in_place(copy.deepcopy(fused.net)).eval() if own else fused.net, fused.spec)
        self.spec, self.autocast = model.spec, model.autocast
        self.color = LumaAndChroma(model.spec.scale) if model.spec.color == "y" else None

    def forward(self, image: Tensor) -> Tensor:
        """RGB (B, 3, H, W) in [0, 1] to RGB (B, 3, H*scale, W*scale), not clipped; or gray (B, 1, H, W) to gray."""
        image = image.contiguous(memory_format=torch.channels_last)
        self.model.autocast = self.autocast
        if image.shape[1] == 1:
            return self.model(image) if self.color is not None else rgb_to_gray(self.model(image.expand(-1, 3, -1, -1)))
        if self.color is None:
            return self.model(image)
        return self.color.join(self.model.run(self.color.luma(image)), framed(image))


def _in_place(net: nn.Module) -> nn.Module:
    """Let the ReLUs of a network write over what the convolution before them gave, which nobody else reads."""
    for sequence in net.modules():
        if isinstance(sequence, nn.Sequential):
            for before, module in itertools.pairwise(sequence):
                if isinstance(module, nn.ReLU) and isinstance(before, (nn.Conv2d, CollapsibleConv2d)):
                    module.inplace = True
    return net
