"""The only door to the ``basicsr`` package."""

from __future__ import annotations

import importlib
import math
import sys
import types
from typing import Any

from torch import nn

from ..errors import UserError
from ..options import architectures as options
from .base import Architecture, StateDict


def import_basicsr(module: str) -> types.ModuleType:
    """Import ``basicsr.<module>``.

    basicsr 1.4.2, the last release, imports ``torchvision.transforms.functional_tensor``, which torchvision removed in 0.17 (fixed
    in its repository in 2024, never released). The one function it takes from there lives in ``functional`` today.

    Raises:
        UserError: basicsr is not installed, or cannot be imported; with the reason.
    """
    alias = "torchvision.transforms.functional_tensor"
    try:
        if alias not in sys.modules:
            from torchvision.transforms.functional import rgb_to_grayscale

            stand_in = types.ModuleType(alias)
            stand_in.rgb_to_grayscale = rgb_to_grayscale  # type: ignore[attr-defined]
            sys.modules[alias] = stand_in
        return importlib.import_module(f"basicsr.{module}")
    except ImportError as error:
        raise UserError(
            f"the package basicsr cannot be imported ({error}): install it as in requirements.txt; it needs Python 3.10-3.12."
        ) from error


def _compact(o: options.Compact, scale: int) -> nn.Module:
    channels = 3 if o.color == "rgb" else 1
    arch = import_basicsr("archs.srvgg_arch")
    return arch.SRVGGNetCompact(channels, channels, o.num_feat, o.num_block, scale, o.activation)


def _edsr(o: options.EDSR, scale: int) -> nn.Module:
    return import_basicsr("archs.edsr_arch").EDSR(3, 3, o.num_feat, o.num_block, scale, o.res_scale)


def _rcan(o: options.RCAN, scale: int) -> nn.Module:
    arch = import_basicsr("archs.rcan_arch")
    return arch.RCAN(3, 3, o.num_feat, o.num_group, o.num_block, o.squeeze_factor, scale)


def _rrdbnet(o: options.RRDBNet, scale: int) -> nn.Module:
    return import_basicsr("archs.rrdbnet_arch").RRDBNet(3, 3, scale, o.num_feat, o.num_block, o.num_grow_ch)


def _swinir(o: options.SwinIR, scale: int) -> nn.Module:
    return import_basicsr("archs.swinir_arch").SwinIR(
        img_size=8 * o.window_size,
        embed_dim=o.embed_dim,
        depths=o.depths,
        num_heads=o.num_heads,
        window_size=o.window_size,
        mlp_ratio=o.mlp_ratio,
        upscale=scale,
        upsampler=o.upsampler,
    )


def _msrresnet(o: options.MSRResNet, scale: int) -> nn.Module:
    return import_basicsr("archs.srresnet_arch").MSRResNet(3, 3, o.num_feat, o.num_block, scale)


def _recognise_edsr(state: StateDict) -> tuple[dict[str, Any], tuple[int, ...]] | None:
    if "conv_after_body.weight" not in state or "body.0.conv1.weight" not in state or "upsample.0.weight" not in state:
        return None
    num_feat = state["conv_first.weight"].shape[0]
    found = {
        "num_feat": num_feat,
        "num_block": sum(key.startswith("body.") and key.endswith(".conv1.weight") for key in state),
        # Not stored in a checkpoint: 0.1 in the large EDSR of the paper (256 channels), 1 in EDSR-baseline.
        "res_scale": 0.1 if num_feat >= 256 else 1.0,
    }
    twice = "upsample.2.weight" in state
    return found, (4 if twice else math.isqrt(state["upsample.0.weight"].shape[0] // num_feat),)


COMPACT = Architecture(_compact)
EDSR = Architecture(_edsr, recognise=_recognise_edsr)
RCAN = Architecture(_rcan)
# At x2 the input is first folded 2 to 1 into the channels. There is no x3.
RRDBNET = Architecture(_rrdbnet, scales=(2, 4), size_multiple=lambda o, scale: 2 if scale == 2 else 1)
SWINIR = Architecture(_swinir, size_multiple=lambda o, scale: o.window_size)
MSRRESNET = Architecture(_msrresnet)
