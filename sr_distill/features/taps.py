"""Which layers of a network can be tapped, and reading them while it runs."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..contracts import Prediction
from ..errors import UserError
from ..models import SRModel

_PROBE = 32  # side of the image of a dry run; a multiple of every window size in use


class _Enough(Exception):
    """Ends a forward pass after the deepest tap."""


@dataclass(frozen=True)
class TapPoint:
    """A layer whose output is a feature map.

    Attributes:
        path: module path inside the network, as in ``body.7``.
        channels: channels of the map.
        stride: size of the map over the size of the LR image.
        kind: class of the module.
        before_activation: whether the map goes into an activation function as it is.
        rectified: whether it comes out of a ReLU as it is.
    """

    path: str
    channels: int
    stride: float
    kind: str
    before_activation: bool = False
    rectified: bool = False


class Taps:
    """Reads the maps that chosen layers of a network put out while it runs, by forward hooks.

    Args:
        model: the network; its layers are looked up in ``model.net``.
        paths: module paths.

    Raises:
        UserError: a path does not exist; names the nearest that do.
    """

    def __init__(self, model: SRModel, paths: Sequence[str]) -> None:
        modules = dict(model.net.named_modules())
        for path in paths:
            if path not in modules or not path:
                raise no_such_layer(model, path, modules)
        self.model = model
        self.paths = tuple(dict.fromkeys(paths))
        self._modules = {path: modules[path] for path in self.paths}

    def run(self, lr: Tensor, need_sr: bool = True, paths: Collection[str] | None = None) -> Prediction:
        """Run the network on RGB (B, 3, H, W): its output, and the maps (B, C, h, w) by path in the order in which they came.

        Token sequences (B, H W, C) become maps. Maps are copies, so that a later in-place layer does not change them, in the
        dtype of ``lr`` also where the network is autocast.

        Args:
            need_sr: False: stop as soon as every tap has fired, and give None as the output.
            paths: those of the layers that are read; None: all.

        Raises:
            UserError: a layer did not run, ran more than once, or gave something that is not a feature map.
        """
        found: dict[str, Tensor] = {}
        modules = {path: self._modules[path] for path in (self.paths if paths is None else paths)}
        stop_at = None if need_sr else len(modules)

        def keep(path: str, output: object, size: tuple[int, int]) -> None:
            if path in found:
                raise UserError(f"{self.model.spec.name}: the layer {path} runs more than once; tap another.")
            value = as_map(output, size, f"{self.model.spec.name}: {path}")
            found[path] = _visible(value, size, tuple(lr.shape[-2:])).to(lr.dtype, copy=True)
            if len(found) == stop_at:
                raise _Enough

        with watching(self.model, modules, keep):
            try:
                sr = self.model(lr)
            except _Enough:
                sr = None
        silent = [path for path in modules if path not in found]
        if silent:
            raise UserError(f"{self.model.spec.name}: the layers {', '.join(silent)} did not run; tap others.")
        return Prediction(sr, found)


def no_such_layer(model: SRModel, path: str, known: Iterable[str], what: str = "") -> UserError:
    """The error for a path that is not among the known ones; names the nearest."""
    near = difflib.get_close_matches(path, list(known), n=3, cutoff=0.3)
    hint = f" Near: {', '.join(near)}." if near else ""
    return UserError(
        f"{model.spec.name} has no layer '{path}'{what}.{hint} sr-distill features --model M lists them all."
    )


@contextlib.contextmanager
def watching(
    model: SRModel, modules: Mapping[str, nn.Module], look: Callable[[str, object, tuple[int, int]], None]
) -> Iterator[None]:
    """While this lasts, call ``look(path, output, size of the network's input)`` whenever one of the modules has run."""
    size: list[tuple[int, int]] = []
    handles = [model.net.register_forward_pre_hook(lambda module, inputs: size.append(tuple(inputs[0].shape[-2:])))]
    for path, module in modules.items():
        hook = functools.partial(lambda path, module, inputs, output: look(path, output, size[-1]), path)
        handles.append(module.register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def as_map(output: object, size: tuple[int, int], where: str) -> Tensor:
    """A layer's output as a map (B, C, h, w): maps as they are, tokens (B, H W, C) of an (H, W) image as maps.

    Raises:
        UserError: it is neither.
    """
    if isinstance(output, Tensor) and output.ndim == 4:
        return output
    if isinstance(output, Tensor) and output.ndim == 3 and output.shape[1] == size[0] * size[1]:
        return output.transpose(1, 2).unflatten(2, size)
    got = f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
    raise UserError(f"{where} gives {got}, which is not a feature map (B, C, H, W): tap another layer.")


def _visible(value: Tensor, size: tuple[int, int], lr_size: tuple[int, int]) -> Tensor:
    """Cut off what belongs to padding at the right and bottom: the network's own, and that of its input."""
    for dim, (padded, real) in enumerate(zip(size, lr_size), start=2):
        length = value.shape[dim]
        if padded < length < 2 * padded:  # the network pads inside
            length = padded
        value = value.narrow(dim, 0, max(1, -(-length * real // padded)))
    return value


@torch.no_grad()
def list_taps(model: SRModel) -> list[TapPoint]:
    """Every layer whose output is a feature map, in the order in which they run; found by a dry run on two small images.

    Layers that run more than once in a pass, as shared activations do, are left out.

    Raises:
        UserError: an exported model has none.
    """
    if model.spec.runtime is not None:
        raise UserError(
            f"{model.spec.name} runs in {model.spec.runtime.split()[0]}, as one piece: it has no layers to look at."
        )
    outputs: dict[str, Tensor] = {}
    activated = _Activations()
    points: dict[str, TapPoint] = {}
    runs: Counter[str] = Counter()
    modules = {path: module for path, module in model.net.named_modules() if path}

    def look(path: str, output: object, size: tuple[int, int]) -> None:
        runs[path] += 1
        if isinstance(output, Tensor) and not activated.includes(output):  # an in-place activation hands on its input
            outputs[path] = output
        with contextlib.suppress(UserError):
            shape = _visible(as_map(output, size, path), size, (_PROBE, _PROBE)).shape
            if shape[0] == 2:  # the windows of a transformer lie in the batch: they are no maps
                kind, rectified = type(modules[path]).__name__, activated.rectified(output)
                points[path] = TapPoint(path, shape[1], shape[-1] / _PROBE, kind, rectified=rectified)

    was_training, example = model.training, next(model.parameters())
    try:
        with watching(model, modules, look), activated:
            model.eval()(torch.zeros(2, 3, _PROBE, _PROBE, dtype=example.dtype, device=example.device))
    finally:
        model.train(was_training)
    return [
        dataclasses.replace(point, before_activation=activated.includes(outputs.get(path)))
        for path, point in points.items()
        if runs[path] == 1
    ]


_ACTIVATIONS = tuple(
    name + in_place
    for name in (
        *("relu", "hardtanh", "leaky_relu", "prelu", "rrelu", "elu", "celu", "selu", "gelu"),
        *("silu", "mish", "softplus", "hardswish"),
    )
    for in_place in ("", "_")
)
"""Activation functions by their names in torch; ReLU6 is a hardtanh."""


def _functions(names: Iterable[str]) -> frozenset[Callable]:
    return frozenset(getattr(space, name) for space in (F, torch, Tensor) for name in names if hasattr(space, name))


class _Activations(TorchFunctionMode):
    """Notes every tensor that goes into an activation function, or comes out of a ReLU, called by a module or not."""

    _ALL, _RELU = _functions(_ACTIVATIONS), _functions(("relu", "relu_"))

    def __init__(self) -> None:
        super().__init__()
        # Kept, so that no other tensor gets the identity of one.
        self._inputs: list[Tensor] = []
        self._rectified: list[Tensor] = []

    def __torch_function__(self, func: Callable, types: Any, args: Sequence = (), kwargs: Mapping | None = None) -> Any:
        if func in self._ALL:
            self._inputs.append(args[0])
        result = func(*args, **(kwargs or {}))
        if func in self._RELU:
            self._rectified.append(result)
        return result

    def includes(self, tensor: Tensor | None) -> bool:
        """Whether this very tensor went into one."""
        return any(seen is tensor for seen in self._inputs)

    def rectified(self, tensor: object) -> bool:
        """Whether this very tensor came out of a ReLU."""
        return any(seen is tensor for seen in self._rectified)
