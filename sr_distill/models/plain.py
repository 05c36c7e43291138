"""Networks of the user's own, which no registry knows."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..errors import UserError, did_you_mean
from .base import ModelSpec, SRModel

_PROBE = 32
_OTHERS = ". For classifiers and other networks there is ModuleDistiller."


@torch.no_grad()
def as_model(net: nn.Module, name: str) -> SRModel:
    """Any network as an :class:`SRModel`; its scale is what a dry run gives.

    Raises:
        UserError: it does not make RGB (B, 3, H*scale, W*scale) of RGB (B, 3, H, W).
    """
    if isinstance(net, SRModel):
        return net
    was_training = net.training
    example = next(net.parameters(), torch.zeros(()))
    shape = (1, 3, _PROBE, _PROBE)
    try:
        out = net.eval()(torch.zeros(shape, dtype=example.dtype, device=example.device))
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise UserError(
            f"{name} cannot be run on RGB {shape} ({' '.join(str(error).split())[:200]}){_OTHERS}"
        ) from error
    finally:
        net.train(was_training)
    scale = out.shape[-1] // _PROBE if isinstance(out, torch.Tensor) else 0
    if scale < 1 or tuple(out.shape) != (1, 3, _PROBE * scale, _PROBE * scale):
        made = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
        raise UserError(
            f"{name} makes {made} of {shape}: a network gives RGB (B, 3, H*scale, W*scale) of (B, 3, H, W){_OTHERS}"
        )
    return SRModel(net, ModelSpec(name=name, scale=scale)).train(was_training)


def share_weights(frozen: nn.Module, trained: nn.Module) -> bool:
    """Whether a network has weights that another one is to learn."""
    learned = {id(weight) for weight in trained.parameters() if weight.requires_grad}
    return any(id(weight) in learned for weight in frozen.parameters())


def describe_plain(net: nn.Module, arguments: Mapping[str, Any]) -> dict[str, str]:
    """What rebuilds a network of a class that Python can import: strings, for metadata.

    Args:
        arguments: with which the class is called; what JSON can hold.

    Raises:
        UserError: the class cannot be imported by its name, or does not give this network with these arguments.
    """
    factory = f"{type(net).__module__}:{type(net).__qualname__}"
    try:
        described = {"factory": factory, "arguments": json.dumps(dict(arguments))}
    except TypeError as error:
        raise UserError(f"arguments of {factory}: {error}: give numbers, strings, lists and mappings.") from error
    shapes = [{key: value.shape for key, value in one.state_dict().items()} for one in (net, rebuild_plain(described))]
    if shapes[0] != shapes[1]:
        raise UserError(
            f"{factory}({described['arguments']}) is another network than the one to be saved: say with which arguments it was made "
            "(sd.save_model(network, path, arguments={...}))."
        )
    return described


def rebuild_plain(described: Mapping[str, str]) -> nn.Module:
    """The network of :func:`describe_plain`, with weights of its own. The class is imported: it must be installed, or beside the script.

    Raises:
        UserError: there is no such class, it is no network, or it cannot be called so.
    """
    factory, arguments = described["factory"], json.loads(described["arguments"])
    module, _, name = factory.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        hint = did_you_mean(name, dir(found)) if isinstance(error, AttributeError) else ""
        raise UserError(
            f"the class {factory} cannot be imported ({error}): define it in a module that is installed or beside the script.{hint}"
        ) from error
    if not (isinstance(found, type) and issubclass(found, nn.Module)):  # a file must not choose what is called
        raise UserError(f"{factory} is no class of networks (torch.nn.Module).")
    try:
        return found(**arguments)
    except TypeError as error:
        raise UserError(f"{factory} cannot be called with {arguments} ({error}).") from error
