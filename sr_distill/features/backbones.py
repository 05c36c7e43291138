"""Pretrained VGG19 and LPIPS networks: found on this machine, or downloaded once by torchvision."""

from __future__ import annotations

import functools
import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import UserError
from ..files import DATA_ROOT_VARIABLE, data_root

_TORCHVISION = {
    "vgg19": "VGG19_Weights",
    "alexnet": "AlexNet_Weights",
    "vgg16": "VGG16_Weights",
    "squeezenet1_1": "SqueezeNet1_1_Weights",
}
_LPIPS_BACKBONE = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}


@functools.lru_cache(maxsize=1)
def vgg19_features() -> nn.Sequential:
    """``torchvision.models.vgg19().features`` with ImageNet weights: frozen, in eval mode; input ImageNet-normalised RGB.

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
    features.load_state_dict(_feature_weights("vgg19"))
    return features.eval().requires_grad_(False)


@functools.lru_cache(maxsize=3)
def lpips_network(network: str, download: bool = True) -> nn.Module:
    """LPIPS v0.1 of the ``lpips`` package with backbone alex, vgg or squeeze: frozen, in eval mode.

    Its linear layers come with the package; the backbone's weights are looked for as in :func:`vgg19_features`. Called with
    ``normalize=True`` it takes RGB in [0, 1].

    Args:
        download: fetch the backbone's weights if they are not on this machine.

    Raises:
        UserError: the backbone's weights cannot be had.
    """
    import lpips

    weights = _feature_weights(_LPIPS_BACKBONE[network], download)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # torchvision deprecates the arguments that lpips passes
        module = lpips.LPIPS(net=network, pnet_rand=True, verbose=False)
    # lpips cuts the backbone into slices and keeps the layers' numbers: net.slice2.5.weight is features.5.weight.
    for name, target in module.net.state_dict().items():
        target.copy_(weights[name.split(".", 1)[1]])
    return module.eval().requires_grad_(False)


def _feature_weights(name: str, download: bool = True) -> dict[str, Tensor]:
    """Weights of ``torchvision.models.<name>().features``, keys without the ``features.`` prefix."""
    weights = _find_weights(name, download)
    return {
        key.removeprefix("features."): value.float() for key, value in weights.items() if key.startswith("features.")
    }


def _find_weights(name: str, download: bool) -> dict[str, Tensor]:
    import torchvision.models

    # The first ImageNet weights: those that LPIPS and the perceptual losses were made with.
    official = getattr(torchvision.models, _TORCHVISION[name]).IMAGENET1K_V1
    cached = Path(torch.hub.get_dir()) / "checkpoints" / official.url.rsplit("/", 1)[-1]
    root = data_root()
    ours = root / "backbones" / f"{name}_features.safetensors" if root else None
    for path in (cached, ours):
        if path is not None and path.is_file():
            return _load(path)
    here = (
        str(ours)
        if ours
        else f"${DATA_ROOT_VARIABLE}/backbones/{name}_features.safetensors ({DATA_ROOT_VARIABLE} is not set)"
    )
    missing = f"pretrained weights of {name} are missing: looked for {cached} (torchvision's cache) and {here}"
    if not download:
        raise UserError(f"{missing}.")
    try:
        return official.get_state_dict(progress=False)
    except Exception as error:
        raise UserError(
            f"{missing}; downloading {official.url} failed ({error}). Put that file into torchvision's cache, or run once with a network."
        ) from error


def _load(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(str(path))
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path} cannot be read ({error}): delete it, so that it is fetched anew.") from error
