"""What pretrained networks see in images, looked at once for all losses."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Collection, Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError, did_you_mean
from ..features import Taps, imagenet_normalised, lpips_network, photograph, vgg19_features
from ..zoo import open_model
from .common import unit

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
    cache = _CACHE.get()
    if cache is None or not wanted <= cache.vgg_layers:  # a loss of the user's own need not announce its layers
        return _run_vgg(image, wanted)
    return cache.once("vgg19", image, lambda: _run_vgg(image, cache.vgg_layers))


def network_maps(image: Tensor, network: str, layers: Collection[str]) -> dict[str, Tensor]:
    """Maps that a network for super-resolution makes of an image (B, 3, H, W) taken as its input, by layer.

    Each is divided by the mean of |x| that it has on a photograph.
    """
    taps, scales = _sr_network(network, tuple(sorted(layers)))
    taps.model.to(image.device)

    def look() -> dict[str, Tensor]:
        with _autocast(image):
            maps = taps.run(image, need_sr=False).features
        return {layer: value.to(image.dtype) / scales[layer] for layer, value in maps.items()}

    cache = _CACHE.get()
    return look() if cache is None else cache.once(f"{network} {sorted(layers)}", image, look)


@functools.lru_cache(maxsize=8)
@torch.inference_mode(False)
def _sr_network(network: str, layers: tuple[str, ...]) -> tuple[Taps, dict[str, float]]:
    """A model by name or file, frozen, with its layers tapped, and how large the map of each is on a photograph."""
    taps = Taps(open_model(network).eval().requires_grad_(False), layers)
    with torch.no_grad():
        maps = taps.run(photograph(), need_sr=False).features
    return taps, {layer: max(float(value.abs().mean()), torch.finfo(value.dtype).tiny) for layer, value in maps.items()}


def lpips_maps(image: Tensor, network: str) -> list[Tensor]:
    """The maps that LPIPS compares, of unit length over the channels; RGB (B, 3, H, W) in [0, 1], converted here."""
    cache = _CACHE.get()
    look = functools.partial(_run_lpips, image, network)
    return look() if cache is None else cache.once(f"lpips {network}", image, look)


@contextlib.contextmanager
def feature_cache(vgg_layers: Collection[int], autocast: torch.dtype | None = None) -> Iterator[None]:
    """While this lasts, VGG19 and LPIPS's networks run once for each image, however many losses look at it.

    Args:
        vgg_layers: every index in VGG19 that any of the losses asks for.
        autocast: dtype to which these networks are autocast, None for that of the images. Maps come back in the images' dtype.
    """
    token = _CACHE.set(_Cache(frozenset(vgg_layers), autocast))
    try:
        yield
    finally:
        _CACHE.reset(token)


class _Cache:
    """What pretrained networks saw in images. Holds the images, so that no other takes the place of one in memory."""

    def __init__(self, vgg_layers: frozenset[int], autocast: torch.dtype | None) -> None:
        self.vgg_layers = vgg_layers
        self.autocast = autocast
        self._seen: dict[tuple[str, int], tuple[Tensor, Any]] = {}

    def once(self, network: str, image: Tensor, look: Callable[[], Any]) -> Any:
        """What this network sees in this very tensor."""
        key = network, id(image)
        if key not in self._seen:
            self._seen[key] = image, look()
        return self._seen[key][1]


_CACHE: ContextVar[_Cache | None] = ContextVar("feature_cache", default=None)


def _autocast(image: Tensor) -> contextlib.AbstractContextManager:
    cache = _CACHE.get()
    if cache is None or cache.autocast is None:
        return contextlib.nullcontext()
    return torch.autocast(image.device.type, dtype=cache.autocast)


def _run_vgg(image: Tensor, wanted: Collection[int]) -> dict[int, Tensor]:
    features = vgg19_features().to(image.device)
    x, maps = imagenet_normalised(image), {}
    with _autocast(image):
        for index, layer in enumerate(features[: max(wanted) + 1]):
            x = layer(x)
            if index in wanted:
                maps[index] = x.to(image.dtype)
    return maps


def _run_lpips(image: Tensor, network: str) -> list[Tensor]:
    module = lpips_network(network).to(image.device)
    with _autocast(image):
        maps = module.net(module.scaling_layer(2 * image - 1))
    return [unit(x.to(image.dtype), 1) for x in maps]
