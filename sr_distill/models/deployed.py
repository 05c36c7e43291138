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
        model: is left as it is, and shares its weights where they are fused already.

    Attributes:
        spec: the contract of the network.
        autocast: as of :class:`SRModel`.
    """

    def __init__(self, model: SRModel) -> None:
        super().__init__()
        fused = model if model.is_quantised else model.collapsed()
        own = (
            fused.spec.architecture is not None
        )  # of others it is not known what they share and whether they can be copied
        self.model = SRModel(_in_place(fused.net) if own else fused.net, fused.spec).eval()
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
    """The network with the same weights, whose ReLUs write over what the convolution before them gave, which nobody else reads."""
    tensors = itertools.chain(net.parameters(), net.buffers())
    copied = copy.deepcopy(net, {id(tensor): tensor for tensor in tensors})
    for sequence in copied.modules():
        if isinstance(sequence, nn.Sequential):
            for before, module in itertools.pairwise(sequence):
                if isinstance(module, nn.ReLU) and isinstance(before, (nn.Conv2d, CollapsibleConv2d)):
                    module.inplace = True
    return copied
