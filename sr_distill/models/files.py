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
from torch import Tensor, nn

from ..errors import UserError
from ..files import atomic_path
from ..options import ArchitectureOptions, validate
from ..plugins import plugin_of
from ..registry import ARCHITECTURES
from .base import SRModel, StateDict
from .build import build_model
from .foreign import load_foreign
from .plain import as_model, describe_plain, rebuild_plain
from .quantised import quantised

_FORMAT = "sr_distill 1"


def save_model(
    model: SRModel | nn.Module,
    path: Path | str,
    notes: Mapping[str, str] | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> None:
    """Write a .safetensors that rebuilds the model by itself: architecture, arguments and scale are in its metadata.

    Where the network is a plugin's, the metadata name it, too. Of another network (RGB in [0, 1] to RGB), they name its class, which is
    imported when the file is opened.

    Args:
        notes: further strings for the metadata (how it was trained).
        arguments: of the class of a network that this package does not know; None: none.

    Raises:
        UserError: the file cannot be written; or the network's class cannot be imported, or needs other arguments.
    """
    path = Path(path)
    model = as_model(model, type(model).__name__)
    if arguments is not None and model.spec.architecture is not None:
        raise UserError(f"arguments are for networks of your own: how to build {model.spec.name} is known.")
    metadata = {**(notes or {}), **describe(model, arguments)}
    weights = {key: value.detach().cpu().contiguous() for key, value in model.net.state_dict().items()}
    with atomic_path(path) as temporary:
        temporary.write_bytes(serialise(weights, metadata=metadata))


def describe(model: SRModel, arguments: Mapping[str, Any] | None = None) -> dict[str, str]:
    """What rebuilds a network, but for its weights: strings, for metadata; arguments and errors as of :func:`save_model`."""
    if model.spec.architecture is None:
        return {"format": _FORMAT, "scale": str(model.spec.scale), **describe_plain(model.net, arguments or {})}
    plugin = plugin_of(type(model.spec.architecture))
    return {
        "format": _FORMAT,
        "scale": str(model.spec.scale),
        "architecture": model.spec.architecture.model_dump_json(),
        **({"plugin": plugin} if plugin else {}),
        **({"rounds": "as in int8"} if model.is_quantised else {}),
    }


def load_model(path: Path, scale: int | None = None, architecture: ArchitectureOptions | None = None) -> SRModel:
    """Load a model from a file, in eval mode, on the CPU.

    The file is one of ours, a checkpoint of a training run (of which the averaged student is taken), a published checkpoint that is
    recognised by its content, or one whose network is given.

    Args:
        path: a .safetensors, or a PyTorch checkpoint (.pth, .pt), which is read with ``weights_only=True``.
        scale: the scale that is wanted; None: whatever the file says.
        architecture: the network, for a checkpoint that does not tell.

    Raises:
        UserError: the file is missing, damaged or unknown, it is for another scale, or it needs a plugin that is not loaded.
    """
    if path.is_dir():
        raise UserError(
            f"{path} is a folder with neither student.safetensors nor last.safetensors, so it is no training run that saved anything: "
            "name a model file, or the folder of a run."
        )
    if not path.is_file():
        raise UserError(f"model file not found: {path}.")
    state, metadata = _read(path)
    if _is_checkpoint(state):
        state, metadata = _averaged_student(state)
        model = _own(path, state, metadata).collapsed()
    elif metadata.get("format") == _FORMAT:
        model = _own(path, state, metadata)
    if metadata.get("format") == _FORMAT:
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


def tells_itself(path: Path) -> bool:
    """Whether a file says what network it is of: a .safetensors of ours, or a checkpoint of a training run."""
    try:
        state, metadata = _read(path)
    except UserError:
        return False
    return metadata.get("format") == _FORMAT or _is_checkpoint(state)


def model_key(model: SRModel) -> str:
    """A hash of the weights and of how they are used; equal models have equal keys."""
    digest = hashlib.sha256(repr(model.spec).encode())
    digest.update(getattr(model.net, "key", "").encode())  # of a network whose weights another runtime holds
    for name, value in sorted(model.net.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _is_checkpoint(content: Any) -> bool:
    """Whether this is what a training run saves to go on from."""
    return isinstance(content, Mapping) and content.keys() >= {"networks", "averages"}


def _averaged_student(checkpoint: Mapping[str, Any]) -> tuple[StateDict, dict[str, str]]:
    """The averaged weights of the student of a training run, without the wrapping, and what its network is."""
    wrapped, before = checkpoint["averages"]["student"], "module.net."
    return {k.removeprefix(before): v for k, v in wrapped.items() if k.startswith(before)}, checkpoint["networks"][
        "student"
    ]


def _own(path: Path, state: StateDict, metadata: Mapping[str, str]) -> SRModel:
    if "factory" in metadata:
        return _fill(as_model(rebuild_plain(metadata), path.stem), state, path)
    try:
        tree, scale = json.loads(metadata["architecture"]), int(metadata["scale"])
    except (KeyError, ValueError) as error:
        raise UserError(f"{path}: its metadata is damaged ({error}).") from error
    name, plugin = str(tree.get("type")) if isinstance(tree, dict) else "", metadata.get("plugin")
    if plugin and name not in ARCHITECTURES:
        raise UserError(f"{path}: needs the network '{name}' of the plugin {plugin}: name it with --plugins {plugin}")
    model = build_model(validate(ArchitectureOptions, tree, f"{path} (metadata)"), scale)
    if "rounds" in metadata:
        model = quantised(model, momentum=0.01)  # which plays no part any more
    return _fill(model, state, path)


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
