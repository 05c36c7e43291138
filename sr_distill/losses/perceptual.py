"""Losses on the feature maps of pretrained networks."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ..features import lpips_network, photograph, vgg19_features
from ..zoo import find_file
from .base import FeatureLoss, Loss, register_loss
from .common import need_same_shape, unit
from .feature_cache import layer_index, lpips_maps, network_maps, vgg_maps

LAYERS: Mapping[str, float] = {"conv3_4": 1.0, "conv4_4": 1.0}
"""Layers of :func:`perceptual` and their factors where none are given."""


def perceptual(
    sr: Tensor,
    target: Tensor,
    layers: Mapping[str, float] | None = None,
    distance: str = "l1",
    network: str = "vgg19",
) -> Tensor:
    """Distance of feature maps: ``sum_l w_l mean d(phi_l(sr), phi_l(target))`` with d = |x - y| or (x - y)^2.

    Args:
        sr, target: RGB (B, 3, H, W) in [0, 1]; normalised to ImageNet's mean and deviation here, and only here.
        layers: name of each layer (see VGG19_LAYERS) and its factor w_l; the network is run no deeper than the deepest.
            None: :data:`LAYERS`.
        distance: "l1" or "l2".
        network: "vgg19", or a network for super-resolution (a name of the zoo, or a file) that looks at the images as if they were its
            input: its layers by module path. It needs no weights from elsewhere, and knows of textures what its task taught it.

    Returns:
        A scalar.

    Raises:
        UserError: a layer does not exist, or the pretrained weights cannot be had.

    Source: Johnson et al., "Perceptual Losses for Real-Time Style Transfer and Super-Resolution", ECCV 2016, equation 2.
    """
    layers = layers or LAYERS
    look = functools.partial(_vgg_by_name if network == "vgg19" else network_maps, network=network, layers=layers)
    maps_sr = look(sr)
    with torch.no_grad():
        maps_target = look(target)
    total = sr.new_zeros(())
    for name, factor in layers.items():
        difference = maps_sr[name] - maps_target[name]
        total = total + factor * (difference.abs() if distance == "l1" else difference.square()).mean()
    return total


def _vgg_by_name(image: Tensor, network: str, layers: Collection[str]) -> dict[str, Tensor]:
    indices = {name: layer_index(name) for name in layers}
    maps = vgg_maps(image, set(indices.values()))
    return {name: maps[index] for name, index in indices.items()}


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

    @property
    def least_side(self) -> int:
        """One pixel is left behind the last of VGG19's halvings that it needs."""
        return 2 ** sum(pool <= max(self.vgg_layers, default=0) for pool in (4, 9, 18, 27, 36))

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
    network: str = Field(
        "vgg19",
        description="Feature network: vgg19, pretrained on ImageNet; or a network for super-resolution, a name of the zoo or a file, which "
        "needs no weights from elsewhere.",
    )
    layers: dict[str, Annotated[float, Field(gt=0)]] = Field(
        dict(LAYERS),
        min_length=1,
        description="Layer and its factor. Names as torchvision's modules (features.16) or spelled out (conv3_4, relu3_4, pool3); of another "
        "network module paths, as sr-distill features --model M lists them.",
    )
    distance: Literal["l1", "l2"] = Field("l1", description="Mean absolute or mean squared difference of the maps.")

    @model_validator(mode="after")
    def _layers_of_its_own(self) -> Perceptual:
        if self.network != "vgg19" and self.layers == LAYERS:
            raise ValueError(f"layers must name those of {self.network}: sr-distill features --model {self.network}")
        return self

    @property
    def vgg_layers(self) -> frozenset[int]:
        """The indices of VGG19's layers that it looks at."""
        return super().vgg_layers if self.network == "vgg19" else frozenset()

    def weights_used(self) -> list[str]:
        """The network, and the file that its weights come from."""
        return super().weights_used() if self.network == "vgg19" else [f"{self.network}: {find_file(self.network)}"]

    def prepare(self) -> None:
        """Wrong names of layers and missing weights are an error now, not at the first step."""
        if self.network == "vgg19":
            super().prepare()
        else:
            network_maps(photograph(), self.network, self.layers)


@register_loss(lpips)
class LPIPS(ImageLoss):
    """Learned perceptual image patch similarity (Zhang et al. 2018)."""

    type: Literal["lpips"] = Field(description="Name of the loss.")
    network: Literal["alex", "vgg", "squeeze"] = Field("alex", description="Backbone of LPIPS v0.1.")

    @property
    def least_side(self) -> int:
        """One pixel is left behind the backbone's last pooling that it needs."""
        return {"alex": 31, "squeeze": 17, "vgg": 16}[self.network]

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
