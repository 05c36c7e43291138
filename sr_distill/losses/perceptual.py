"""Losses on the feature maps of pretrained networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..features import lpips_network, vgg19_features
from .base import FeatureLoss, Loss, register_loss
from .common import need_same_shape, unit
from .feature_cache import layer_index, lpips_maps, vgg_maps

LAYERS: Mapping[str, float] = {"conv3_4": 1.0, "conv4_4": 1.0}
"""Layers of :func:`perceptual` and their factors where none are given."""


def perceptual(sr: Tensor, target: Tensor, layers: Mapping[str, float] | None = None, distance: str = "l1") -> Tensor:
    """Distance of VGG19 feature maps: ``sum_l w_l mean d(phi_l(sr), phi_l(target))`` with d = |x - y| or (x - y)^2.

    Args:
        sr, target: RGB (B, 3, H, W) in [0, 1]; normalised to ImageNet's mean and deviation here, and only here.
        layers: name of each layer (see VGG19_LAYERS) and its factor w_l; VGG is run no deeper than the deepest.
            None: :data:`LAYERS`.
        distance: "l1" or "l2".

    Returns:
        A scalar.

    Raises:
        UserError: a layer does not exist, or the pretrained weights cannot be had.

    Source: Johnson et al., "Perceptual Losses for Real-Time Style Transfer and Super-Resolution", ECCV 2016, equation 2.
    """
    factors = {layer_index(name): weight for name, weight in (layers or LAYERS).items()}
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
    maps_sr = lpips_maps(sr, network)
    with torch.no_grad():
        maps_target = lpips_maps(target, network)
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


class LooksThroughVGG:
    """What losses have in common whose ``layers`` are VGG19's."""

    layers: Mapping[str, float]

    @property
    def vgg_layers(self) -> frozenset[int]:
        """The indices of VGG19's layers that it looks at."""
        return frozenset(map(layer_index, self.layers))

    def weights_used(self) -> list[str]:
        """VGG19."""
        return [f"VGG19: {vgg19_features().source}"]

    def prepare(self) -> None:
        """Wrong names of layers and missing weights are an error now, not at the first step."""
        _ = self.vgg_layers
        vgg19_features()


class ImageLoss(Loss):
    """A loss that looks at images through a pretrained network."""

    on: Literal["sr", "decoded", "projected"] = Field(
        "sr",
        description="What is compared: the output (sr), the images that the rest of the teacher makes of the student's adapted maps and of "
        "its own (decoded), or three principal components of the teacher's maps as images (projected).",
    )


@register_loss(perceptual)
class Perceptual(LooksThroughVGG, ImageLoss):
    """Distance between VGG19 feature maps."""

    type: Literal["perceptual"] = Field(description="Name of the loss.")
    network: Literal["vgg19"] = Field("vgg19", description="Feature network, pretrained on ImageNet.")
    layers: dict[str, Annotated[float, Field(gt=0)]] = Field(
        dict(LAYERS),
        min_length=1,
        description="Layer and its factor. Names as torchvision's modules (features.16) or spelled out (conv3_4, relu3_4, pool3).",
    )
    distance: Literal["l1", "l2"] = Field("l1", description="Mean absolute or mean squared difference of the maps.")


@register_loss(lpips)
class LPIPS(ImageLoss):
    """Learned perceptual image patch similarity (Zhang et al. 2018)."""

    type: Literal["lpips"] = Field(description="Name of the loss.")
    network: Literal["alex", "vgg", "squeeze"] = Field("alex", description="Backbone of LPIPS v0.1.")

    def weights_used(self) -> list[str]:
        """The backbone of LPIPS."""
        return [f"LPIPS {self.network}: {lpips_network(self.network).source}"]

    def prepare(self) -> None:
        """Missing weights are an error now, not at the first step."""
        lpips_network(self.network)


@register_loss(normalised_difference)
class NormalisedDifference(FeatureLoss):
    """LPIPS's own recipe on adapted maps: of unit length over the channels at each place, squared difference; no network."""

    type: Literal["normalised_difference"] = Field(description="Name of the loss.")
