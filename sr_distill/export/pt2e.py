"""int8 by PyTorch's quantisation of exported programs (PT2E), which ExecuTorch and LiteRT share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .graph import ExportGraph


def quantised_by(quantizer: Any, graph: ExportGraph, photos: Sequence[Tensor], **convert: Any) -> torch.nn.Module:
    """The graph with the ranges of the photos, rounded where a runtime's quantiser says so.

    Args:
        convert: settings of ``convert_pt2e``.
    """
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    observed = prepare_pt2e(torch.export.export(graph, (photos[0],)).module(), quantizer)
    for photo in photos:
        observed(photo)
    return convert_pt2e(observed, **convert)


def is_of_the_network(node: torch.fx.Node) -> bool:
    """Whether an operator or a weight of an :class:`ExportGraph` belongs to the network; all else, the colours, stays in float.

    The quantisers' own filters by module name do not do: XNNPACK's asks weights, too, which know no module, and leaves them in float.
    """
    if node.op == "get_attr":
        return node.target.startswith("net.")
    return "net" in [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
