"""Model files in and out: our own, which rebuild themselves, and published checkpoints."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import Tensor

from ..errors import UserError
from ..files import atomic_path
from ..options import ArchitectureOptions, validate
from ..plugins import plugin_of
from ..registry import ARCHITECTURES
from .base import SRModel, StateDict
from .build import build_model
from .foreign import load_foreign

_FORMAT = "sr_distill 1"


def save_model(model: SRModel, path: Path, notes: Mapping[str, str] | None = None) -> None:
    """Write a .safetensors that rebuilds the model by itself: architecture, arguments and scale are in its metadata.

    Where the network is a plugin's, the metadata name it, too.

    Args:
        notes: further strings for the metadata (how it was trained).

    Raises:
        UserError: the file cannot be written.
        ValueError: the network is a foreign one, of which only spandrel knows how to rebuild it.
    """
    if model.spec.architecture is None:
        raise ValueError(f"{model.spec.name} was not built by this package")
    plugin = plugin_of(type(model.spec.architecture))
    metadata = {
        **(notes or {}),
        "format": _FORMAT,
        "scale": str(model.spec.scale),
        "architecture": model.spec.architecture.model_dump_json(),
        **({"plugin": plugin} if plugin else {}),
    }
    weights = {key: value.detach().cpu().contiguous() for key, value in model.net.state_dict().items()}
    with atomic_path(path) as temporary:
        temporary.write_bytes(serialise(weights, metadata=metadata))


def load_model(path: Path, scale: int | None = None, architecture: ArchitectureOptions | None = None) -> SRModel:
    """Load a model from a file, in eval mode, on the CPU.

    The file is one of ours, a published checkpoint that is recognised by its content, or one whose network is given.

    Args:
        path: a .safetensors, or a PyTorch checkpoint (.pth, .pt), which is read with ``weights_only=True``.
        scale: the scale that is wanted; None: whatever the file says.
        architecture: the network, for a checkpoint that does not tell.

    Raises:
        UserError: the file is missing, damaged or unknown, it is for another scale, or it needs a plugin that is not loaded.
    """
    if not path.is_file():
        raise UserError(f"model file not found: {path}.")
    state, metadata = _read(path)
    if metadata.get("format") == _FORMAT:
        model = _own(path, state, metadata)
        if architecture is not None and architecture != model.spec.architecture:
            raise UserError(f"{path} says itself that it is {model.spec.architecture}, not {architecture}.")
    elif architecture is not None:
        model = _fill(build_model(architecture, _need_scale(path, scale)), _weights(state), path)
    else:
        state = _weights(state)
        model = _recognise(path, state, scale) or load_foreign(state, path)
    if scale is not None and model.spec.scale != scale:
        raise UserError(f"{path} is a network for scale {model.spec.scale}, but scale {scale} is asked for.")
    return model.eval()


def model_key(model: SRModel) -> str:
    """A hash of the weights and of how they are used; equal models have equal keys."""
    digest = hashlib.sha256(repr(model.spec).encode())
    for name, value in sorted(model.net.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _own(path: Path, state: StateDict, metadata: Mapping[str, str]) -> SRModel:
    try:
        tree, scale = json.loads(metadata["architecture"]), int(metadata["scale"])
    except (KeyError, ValueError) as error:
        raise UserError(f"{path}: its metadata is damaged ({error}).") from error
    name, plugin = str(tree.get("type")) if isinstance(tree, dict) else "", metadata.get("plugin")
    if plugin and name not in ARCHITECTURES:
        raise UserError(f"{path}: needs the network '{name}' of the plugin {plugin}: name it with --plugins {plugin}")
    return _fill(build_model(validate(ArchitectureOptions, tree, f"{path} (metadata)"), scale), state, path)


def _recognise(path: Path, state: StateDict, scale: int | None) -> SRModel | None:
    """Try the networks of our own registry that know their published checkpoints."""
    for name, architecture in ARCHITECTURES.items():
        try:
            found = architecture.recognise(state)
        except (KeyError, IndexError, ValueError):
            continue
        if found is not None:
            options, scales = found
            if len(scales) > 1 and scale not in scales:
                listed = " and ".join(f"x{s}" for s in scales)
                raise UserError(
                    f"{path}: {name} has the same weights for {listed}; say which scale it is for (--scale)."
                )
            tree = {"type": name, **options}
            chosen = scale if len(scales) > 1 else scales[0]
            return _fill(build_model(validate(ArchitectureOptions, tree, str(path)), chosen), state, path)
    return None


def _fill(model: SRModel, state: StateDict, path: Path) -> SRModel:
    try:
        model.net.load_state_dict(dict(state), strict=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        shown = "; ".join(lines[:3]) + (f"; and {len(lines) - 3} more" if len(lines) > 3 else "")
        raise UserError(
            f"{path}: the weights do not fit {model.spec.name} at scale {model.spec.scale}: {shown}"
        ) from None
    return model


def _need_scale(path: Path, scale: int | None) -> int:
    if scale is None:
        raise UserError(f"{path}: say which scale the checkpoint is for (--scale).")
    return scale


def _read(path: Path) -> tuple[Any, dict[str, str]]:
    """The content of a checkpoint file, and the metadata of a .safetensors."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(str(path), "pt") as file:
                metadata = file.metadata() or {}
            return load_file(str(path)), metadata
        _check_kind(path)
        return torch.load(path, map_location="cpu", weights_only=True), {}
    except Exception as error:
        reason = " ".join(str(error).split())
        if "weights_only" in reason or "Unsupported" in reason:
            reason = "it holds Python objects beside weights, which are not loaded, because they could run code"
        raise UserError(f"{path} cannot be read as a model file ({reason[:200]}).") from error


def _check_kind(path: Path) -> None:
    """torch.load takes any file for a pickle and complains about its content; say first if it is none."""
    with path.open("rb") as file:
        start = file.read(2)
    if start not in (b"PK", b"\x80\x02"):  # a zip archive, or the older bare pickle
        raise ValueError("it is neither a PyTorch checkpoint nor a .safetensors")


def _weights(content: Any) -> dict[str, Tensor]:
    """The weights inside a checkpoint, without the wrappings that trainers put around them."""
    for key in ("params_ema", "params", "state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping):
        raise UserError(f"the checkpoint holds a {type(content).__name__}, not a dictionary of weights.")
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if tensors and all(key.startswith("module.") for key in tensors):
        tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    return tensors
