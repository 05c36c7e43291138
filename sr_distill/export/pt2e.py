"""int8 by PyTorch's quantisation of exported programs (PT2E), which ExecuTorch and LiteRT share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..models.quantised import Limits, Ranges
from .graph import ExportGraph


def quantised_by(quantizer: Any, graph: ExportGraph, photos: Sequence[Tensor], **convert: Any) -> torch.nn.Module:
    """The graph, rounded where a runtime's quantiser says so, with the ranges that it was trained with, else those of the photos.

    Args:
        convert: settings of ``convert_pt2e``.
    """
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    observed = prepare_pt2e(torch.export.export(graph, (photos[0],)).module(), quantizer)
    for photo in photos:
        observed(photo)
    _give(graph.ranges, observed)
    return convert_pt2e(observed, **convert)


def _give(ranges: Ranges, observed: torch.fx.GraphModule) -> None:
    """Put ranges in the place of what was observed of the maps that go into convolutions and come out of them."""
    for node in observed.graph.nodes:
        name = _name_of_convolution(node)
        if name in ranges:
            into, out = ranges[name]
            if into is not None:
                _set(observed, node.args[0], into)
            relu = next((user for user in node.users if str(user.target).startswith("aten.relu")), node)
            _set(observed, next(iter(relu.users)), out)


def _name_of_convolution(node: torch.fx.Node) -> str:
    if node.op != "call_function" or not str(node.target).startswith("aten.conv"):
        return ""
    weight = node.args[1]
    while weight.op == "call_module":  # an observer
        weight = weight.args[0]
    return str(weight.target).removeprefix("net.").removesuffix(".weight")


def _set(observed: torch.fx.GraphModule, node: torch.fx.Node, limits: Limits) -> None:
    """Replace an observer by one of the same levels that has seen these values."""
    from torchao.quantization.pt2e import MinMaxObserver

    if node.op == "call_module":
        seen = observed.get_submodule(node.target)
        settings = {name: getattr(seen, name) for name in ("dtype", "qscheme", "quant_min", "quant_max")}
        observer = MinMaxObserver(**settings)
        observer(torch.tensor(limits))
        observed.set_submodule(node.target, observer)


def is_of_the_network(node: torch.fx.Node) -> bool:
    """Whether an operator or a weight of an :class:`ExportGraph` belongs to the network; all else, the colours, stays in float.

    The quantisers' own filters by module name do not do: XNNPACK's asks weights, too, which know no module, and leaves them in float.
    """
    if node.op == "get_attr":
        return node.target.startswith("net.")
    return "net" in [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
