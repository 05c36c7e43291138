"""What a network was given and gave, and what some of its layers gave, in one pass."""

from __future__ import annotations

import contextlib
import difflib
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..errors import UserError


@dataclass
class Pass:
    """What a network was given and gave in one pass."""

    inputs: tuple[Any, ...] = ()
    named_inputs: Mapping[str, Any] = field(default_factory=dict)
    result: Any = None
    maps: dict[str, Tensor] = field(default_factory=dict)
    runs: int = 0


@contextlib.contextmanager
def noted(network: nn.Module, layers: set[str], name: str) -> Iterator[Pass]:
    """While this lasts, note what goes into and out of a network and some of its layers; at the end all must have run once."""
    seen, modules = Pass(), dict(network.named_modules())
    for layer in layers:
        if layer not in modules or not layer:
            near = difflib.get_close_matches(layer, list(modules), n=3, cutoff=0.3)
            hint = f" Near: {', '.join(near)}." if near else ""
            raise UserError(f"the {name} has no layer '{layer}'.{hint} named_modules() lists them all.")

    def note_inputs(module: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        seen.inputs, seen.named_inputs, seen.runs = inputs, named, seen.runs + 1

    def note_result(module: nn.Module, inputs: tuple[Any, ...], result: Any) -> None:
        seen.result = result

    def note_layer(layer: str, module: nn.Module, inputs: tuple[Any, ...], result: Any) -> None:
        value = result[0] if isinstance(result, (tuple, list)) else result
        if layer in seen.maps or not isinstance(value, Tensor):
            what = "runs more than once" if layer in seen.maps else f"gives a {type(value).__name__}, not a tensor"
            raise UserError(f"the {name}: the layer {layer} {what}; name another.")
        seen.maps[layer] = value.clone()  # a later in-place layer must not change it

    handles = [
        network.register_forward_pre_hook(note_inputs, with_kwargs=True),
        network.register_forward_hook(note_result),
        *(modules[layer].register_forward_hook(functools.partial(note_layer, layer)) for layer in layers),
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
    if seen.runs != 1:
        raise UserError(f"the {name} must run once, and ran {seen.runs} times.")
    silent = sorted(layers - seen.maps.keys())
    if silent:
        raise UserError(f"the {name}: the layers {', '.join(silent)} did not run; name others.")
