"""Losses on the feature maps of pretrained networks."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from ..errors import UserError, did_you_mean
from ..features import lpips_network, vgg19_features
from ..options import losses as options

_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
_CONVS_IN_STAGE = (2, 2, 4, 4, 4)


def _layer_names() -> dict[str, int]:
    """Index in ``vgg19().features`` by torchvision's name (features.16) and by the papers' (conv3_4, relu3_4, pool3)."""
    index, names = itertools.count(), {}
    for stage, convs in enumerate(_CONVS_IN_STAGE, start=1):
        for conv in range(1, convs + 1):
            names[f"conv{stage}_{conv}"] = next(index)
            names[f"relu{stage}_{conv}"] = next(index)
        names[f"pool{stage}"] = next(index)
    return names | {f"features.{number}": number for number in range(next(index))}


VGG19_LAYERS: dict[str, int] = _layer_names()
"""Every name that a layer of VGG19 can be asked for by, and its index in ``torchvision.models.vgg19().features``."""


def perceptual(sr: Tensor, target: Tensor, layers: dict[str, float], distance: str = "l1") -> Tensor:
    """Distance of VGG19 feature maps: ``sum_l w_l mean d(phi_l(sr), phi_l(target))`` with d = |x - y| or (x - y)^2.

    Args:
        sr, target: RGB (B, 3, H, W) in [0, 1]; normalised to ImageNet's mean and deviation here, and only here.
        layers: name of each layer (see :data:`VGG19_LAYERS`) and its factor w_l; VGG is run no deeper than the deepest.
        distance: "l1" or "l2".

    Returns:
        A scalar.

    Raises:
        UserError: a layer does not exist, or the pretrained weights cannot be had.

    Source: Johnson et al., "Perceptual Losses for Real-Time Style Transfer and Super-Resolution", ECCV 2016, equation 2.
    """
    factors = {layer_index(name): weight for name, weight in layers.items()}
    maps_sr = vgg_maps(sr, set(factors))
    with torch.no_grad():
        maps_target = vgg_maps(target, set(factors))
    total = sr.new_zeros(())
    for index, factor in factors.items():
        difference = maps_sr[index] - maps_target[index]
        total = total + factor * (difference.abs() if distance == "l1" else difference.square()).mean()
    return total


def lpips(sr: Tensor, target: Tensor, network: str = "alex") -> Tensor:
    """LPIPS v0.1, mean over the batch; RGB (B, 3, H, W) in [0, 1], converted to the [-1, 1] it works on here, and only here.

    Raises:
        UserError: the pretrained weights of the backbone cannot be had.

    Source: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018, equation 1;
    computed by the authors' package ``lpips``.
    """
    return lpips_network(network).to(sr.device)(sr, target, normalize=True).mean()


class PerceptualLoss(nn.Module):
    """:func:`perceptual` as a term of the objective."""

    def __init__(self, options: options.Perceptual) -> None:
        super().__init__()
        self.layers, self.distance = options.layers, options.distance
        for name in self.layers:
            layer_index(name)
        vgg19_features()  # missing weights are an error now, not at the first step

    def forward(self, sr: Tensor, target: Tensor) -> Tensor:
        """A scalar from two (B, 3, H, W) in [0, 1]."""
        return perceptual(sr, target, self.layers, self.distance)


class LPIPSLoss(nn.Module):
    """:func:`lpips` as a term of the objective."""

    def __init__(self, options: options.LPIPS) -> None:
        super().__init__()
        self.network = options.network
        lpips_network(self.network)  # missing weights are an error now, not at the first step

    def forward(self, sr: Tensor, target: Tensor) -> Tensor:
        """A scalar from two (B, 3, H, W) in [0, 1]."""
        return lpips(sr, target, self.network)


def layer_index(name: str) -> int:
    """Index of a layer in ``vgg19().features``; UserError with the nearest name where there is none."""
    if name not in VGG19_LAYERS:
        hint = did_you_mean(name, VGG19_LAYERS, cutoff=0.6)
        raise UserError(
            f"vgg19 has no layer '{name}'.{hint} Allowed: features.0 to features.36, conv1_1, relu1_1, pool1, ... pool5."
        )
    return VGG19_LAYERS[name]


def vgg_maps(image: Tensor, wanted: set[int]) -> dict[int, Tensor]:
    """Maps of VGG19 at the wanted indices, run no deeper than the deepest; RGB (B, 3, H, W) in [0, 1], normalised here."""
    features = vgg19_features().to(image.device)
    x = (image - image.new_tensor(_MEAN).view(-1, 1, 1)) / image.new_tensor(_STD).view(-1, 1, 1)
    maps = {}
    for index, layer in enumerate(features[: max(wanted) + 1]):
        x = layer(x)
        if index in wanted:
            maps[index] = x
    return maps
