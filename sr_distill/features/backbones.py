"""Pretrained VGG19 and LPIPS networks: found on this machine, or downloaded once by torchvision."""

from __future__ import annotations

import functools
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..data.embedded import training_photos
from ..data.images import read_rgb, to_tensor
from ..errors import UserError
from ..files import DATA_ROOT_VARIABLE, data_root

_TORCHVISION = {
    "vgg19": "VGG19_Weights",
    "alexnet": "AlexNet_Weights",
    "vgg16": "VGG16_Weights",
    "squeezenet1_1": "SqueezeNet1_1_Weights",
}
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
_LPIPS_BACKBONE = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}


@functools.lru_cache(maxsize=1)
def vgg19_features() -> nn.Sequential:
    """``torchvision.models.vgg19().features`` with ImageNet weights: frozen, in eval mode; input ImageNet-normalised RGB.

    Weights of different origin give maps of different size (Caffe's are some hundred times torchvision's), so that the same weight of a
    loss would mean something else with each. Every convolution is therefore divided by the mean that its map has after ReLU on a
    photograph, as Gatys et al. ("Image Style Transfer Using Convolutional Neural Networks", CVPR 2016, section 2) do by channel: each map
    has a mean of 1 there. What the network computes is the same but for these factors. ``.source`` is the file the weights come from.

    Raises:
        UserError: the weights are nowhere on this machine and cannot be downloaded; lists where they were looked for.
    """
    from torchvision.models.vgg import cfgs, make_layers

    with torch.random.fork_rng(devices=[]):  # its random start must not come out of the run's random state
        features = make_layers(cfgs["E"], batch_norm=False)  # vgg19 without its 124 M weights for classification
    # In-place activations would overwrite a map after it was tapped.
    for layer in features:
        if isinstance(layer, nn.ReLU):
            layer.inplace = False
    weights, features.source = _feature_weights("vgg19")
    features.load_state_dict(weights)
    return _to_unit_means(features.eval().requires_grad_(False))


@torch.no_grad()
def _to_unit_means(features: nn.Sequential) -> nn.Sequential:
    """Divide each convolution by the mean of its map after ReLU; what the network computes stays the same but for that factor."""
    before, x = 1.0, imagenet_normalised(photograph())
    for layer in features:
        if isinstance(layer, nn.Conv2d):
            layer.bias.div_(before)  # the input is smaller by this already
            x = layer(x)
            mean = x.relu().mean().clamp_min(torch.finfo(x.dtype).tiny)
            for weight in (layer.weight, layer.bias):
                weight.div_(mean)
            before, x = before * mean, x / mean
        else:
            x = layer(x)
    return features


def photograph() -> Tensor:
    """The photograph on which maps are measured: RGB (1, 3, 256, 256) in [0, 1]."""
    return to_tensor(read_rgb(training_photos()[0]))[None, :, :256, :256].float() / 255


def imagenet_normalised(image: Tensor) -> Tensor:
    """RGB (B, 3, H, W) in [0, 1] minus ImageNet's mean, divided by its deviation: what torchvision's networks take."""
    mean, std = _statistics(image.device, image.dtype)
    return (image - mean) / std


@functools.lru_cache(maxsize=8)
@torch.inference_mode(False)  # else what is made while evaluating could not be differentiated through later
def _statistics(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """ImageNet's mean and deviation, copied to the device once."""
    return tuple(torch.tensor(values, device=device, dtype=dtype).view(-1, 1, 1) for values in (_MEAN, _STD))


@functools.lru_cache(maxsize=3)
def lpips_network(network: str, download: bool = True) -> nn.Module:
    """LPIPS v0.1 of the ``lpips`` package with backbone alex, vgg or squeeze: frozen, in eval mode.

    Its linear layers come with the package; the backbone's weights are looked for as in :func:`vgg19_features`. Called with
    ``normalize=True`` it takes RGB in [0, 1].

    Args:
        download: fetch the backbone's weights if they are not on this machine.

    Raises:
        UserError: the backbone's weights cannot be had; names the backbones that can.
    """
    import lpips

    try:
        weights, source = _feature_weights(_LPIPS_BACKBONE[network], download)
    except UserError as error:
        there = [
            name for name, backbone in _LPIPS_BACKBONE.items() if any(path.is_file() for path in _places(backbone))
        ]
        hint = f" Here are the weights of network: {' and '.join(there)}." if there else ""
        raise UserError(f"{error}{hint}") from error.__cause__
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # torchvision deprecates the arguments that lpips passes
        module = lpips.LPIPS(net=network, pnet_rand=True, verbose=False)
    # lpips cuts the backbone into slices and keeps the layers' numbers: net.slice2.5.weight is features.5.weight.
    for name, target in module.net.state_dict().items():
        target.copy_(weights[name.split(".", 1)[1]])
    module.source = source
    return module.eval().requires_grad_(False)


def _feature_weights(name: str, download: bool = True) -> tuple[dict[str, Tensor], str]:
    """Weights of ``torchvision.models.<name>().features``, keys without the ``features.`` prefix, and where they come from."""
    weights, source = _find_weights(name, download)
    own = {
        key.removeprefix("features."): value.float() for key, value in weights.items() if key.startswith("features.")
    }
    return own, source


def _find_weights(name: str, download: bool) -> tuple[dict[str, Tensor], str]:
    official, (cached, *ours) = _official(name), _places(name)
    for path in (cached, *ours):
        if path.is_file():
            return _load(path), str(path)
    unset = f"${DATA_ROOT_VARIABLE}/backbones/{name}_features.safetensors ({DATA_ROOT_VARIABLE} is not set)"
    here = str(ours[0]) if ours else unset
    missing = f"pretrained weights of {name} are missing: looked for {cached} (torchvision's cache) and {here}"
    if not download:
        raise UserError(f"{missing}.")
    try:
        return official.get_state_dict(progress=False), official.url
    except Exception as error:
        raise UserError(
            f"{missing}; downloading {official.url} failed ({error}). Put that file into torchvision's cache, or run once with a network."
        ) from error


def _places(name: str) -> list[Path]:
    """Where a backbone's weights may lie: torchvision's cache, and below SR_DISTILL_DATA where that is set."""
    root, file = data_root(), _official(name).url.rsplit("/", 1)[-1]
    ours = [root / "backbones" / f"{name}_features.safetensors"] if root else []
    return [Path(torch.hub.get_dir()) / "checkpoints" / file, *ours]


def _official(name: str) -> Any:
    """Torchvision's first ImageNet weights: those that LPIPS and the perceptual losses were made with."""
    import torchvision.models

    return getattr(torchvision.models, _TORCHVISION[name]).IMAGENET1K_V1


def _load(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(str(path))
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path} cannot be read ({error}): delete it, so that it is fetched anew.") from error
