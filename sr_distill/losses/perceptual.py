"""Losses on the feature maps of pretrained networks."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError, did_you_mean
from ..features import lpips_network, vgg19_features
from ..options import losses as options
from .common import need_same_shape, unit

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


def perceptual(sr: Tensor, target: Tensor, layers: Mapping[str, float] | None = None, distance: str = "l1") -> Tensor:
    """Distance of VGG19 feature maps: ``sum_l w_l mean d(phi_l(sr), phi_l(target))`` with d = |x - y| or (x - y)^2.

    Args:
        sr, target: RGB (B, 3, H, W) in [0, 1]; normalised to ImageNet's mean and deviation here, and only here.
        layers: name of each layer (see :data:`VGG19_LAYERS`) and its factor w_l; VGG is run no deeper than the deepest.
            None: those of the options, conv3_4 and conv4_4.
        distance: "l1" or "l2".

    Returns:
        A scalar.

    Raises:
        UserError: a layer does not exist, or the pretrained weights cannot be had.

    Source: Johnson et al., "Perceptual Losses for Real-Time Style Transfer and Super-Resolution", ECCV 2016, equation 2.
    """
    layers = options.Perceptual.model_fields["layers"].default if layers is None else layers
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

    Networks and weights are those of the authors' package ``lpips``. Maps are brought to unit length by a form whose gradient is
    finite where a map is zero; the package's is not.

    Source: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018, equation 1.
    """
    linear = lpips_network(network).to(sr.device).lins
    maps_sr = _lpips_maps(sr, network)
    with torch.no_grad():
        maps_target = _lpips_maps(target, network)
    return sum(layer((a - b).square()).mean() for layer, a, b in zip(linear, maps_sr, maps_target))


def normalised_difference(student: Tensor, teacher: Tensor) -> Tensor:
    """LPIPS's recipe on feature maps themselves: ``mean_bhw sum_c (u_s - u_t)^2`` with u of unit length over the channels.

    Args:
        student, teacher: same shape (B, C, H, W), any range; a place where all channels are zero stays zero.

    Returns:
        A scalar in [0, 4].

    Source: Zhang et al. 2018, equation 1, with all weights 1.
    """
    need_same_shape("normalised_difference", student, teacher)
    return (unit(student, 1) - unit(teacher, 1)).square().sum(1).mean()


class PerceptualLoss(nn.Module):
    """:func:`perceptual` as a term; of feature maps in space "normalised" :func:`normalised_difference`.

    Attributes:
        vgg_layers: indices of the layers of VGG19 that it looks at.
    """

    def __init__(self, options: options.Perceptual) -> None:
        super().__init__()
        self.layers, self.distance = options.layers, options.distance
        self.vgg_layers = {layer_index(name) for name in self.layers}
        self.normalised = options.space_of_maps == "normalised"
        if not self.normalised:
            vgg19_features()  # missing weights are an error now, not at the first step

    def forward(self, sr: Tensor, target: Tensor) -> Tensor:
        """A scalar from two images (B, 3, H, W) in [0, 1], or from two maps (B, C, h, w)."""
        if self.normalised:
            return normalised_difference(sr, target)
        return perceptual(sr, target, self.layers, self.distance)


class LPIPSLoss(nn.Module):
    """:func:`lpips` as a term; of feature maps in space "normalised" :func:`normalised_difference`."""

    def __init__(self, options: options.LPIPS) -> None:
        super().__init__()
        self.network = options.network
        self.normalised = options.space_of_maps == "normalised"
        if not self.normalised:
            lpips_network(self.network)  # missing weights are an error now, not at the first step

    def forward(self, sr: Tensor, target: Tensor) -> Tensor:
        """A scalar from two images (B, 3, H, W) in [0, 1], or from two maps (B, C, h, w)."""
        return normalised_difference(sr, target) if self.normalised else lpips(sr, target, self.network)


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
    looked = _LOOKED.get()
    if looked is None:
        return _run_vgg(image, wanted)
    if not wanted <= looked.vgg_layers:
        raise ValueError(f"VGG19's layers {sorted(wanted - looked.vgg_layers)} were not announced")
    return looked.once("vgg19", image, lambda: _run_vgg(image, looked.vgg_layers))


@contextlib.contextmanager
def each_image_looked_at_once(vgg_layers: Collection[int]) -> Iterator[None]:
    """While this lasts, VGG19 and LPIPS's networks run once for each image, however many terms look at it.

    Args:
        vgg_layers: every index in VGG19 that any of the terms asks for.
    """
    token = _LOOKED.set(_Looked(frozenset(vgg_layers)))
    try:
        yield
    finally:
        _LOOKED.reset(token)


class _Looked:
    """What pretrained networks saw in images. Holds the images, so that no other takes the place of one in memory."""

    def __init__(self, vgg_layers: frozenset[int]) -> None:
        self.vgg_layers = vgg_layers
        self._seen: dict[tuple[str, int], tuple[Tensor, Any]] = {}

    def once(self, network: str, image: Tensor, look: Callable[[], Any]) -> Any:
        """What this network sees in this very tensor."""
        key = network, id(image)
        if key not in self._seen:
            self._seen[key] = image, look()
        return self._seen[key][1]


_LOOKED: ContextVar[_Looked | None] = ContextVar("looked", default=None)


def _run_vgg(image: Tensor, wanted: Collection[int]) -> dict[int, Tensor]:
    features = vgg19_features().to(image.device)
    x = (image - image.new_tensor(_MEAN).view(-1, 1, 1)) / image.new_tensor(_STD).view(-1, 1, 1)
    maps = {}
    for index, layer in enumerate(features[: max(wanted) + 1]):
        x = layer(x)
        if index in wanted:
            maps[index] = x
    return maps


def _lpips_maps(image: Tensor, network: str) -> list[Tensor]:
    """The maps that LPIPS compares, of unit length over the channels."""

    def look() -> list[Tensor]:
        module = lpips_network(network).to(image.device)
        return [unit(x, 1) for x in module.net(module.scaling_layer(2 * image - 1))]

    looked = _LOOKED.get()
    return look() if looked is None else looked.once(f"lpips {network}", image, look)
