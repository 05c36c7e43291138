"""LiteRT (formerly TensorFlow Lite), Android's own runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .formats import Format, Precision, Runner, register_format
from .graph import ExportGraph, Signature
from .lowering import Lowering
from .pt2e import is_of_the_network, quantised_by


@register_format
class LiteRt(Format):
    """``.tflite`` for one size of images: neither its converter nor its runtime changes the size of such a graph.

    int8 is made by PyTorch's quantiser for it: the input is 8 bits inside, the file still takes floats.
    """

    name = "litert"
    runtime = "LiteRT"
    suffix = ".tflite"
    packages = {"litert_torch": "litert-torch", "ai_edge_litert": "ai-edge-litert"}
    precisions = ("fp32", "int8")
    ios = ("rgb", "y")
    dynamic = False
    # Its GPUs refuse the comparison that PReLU becomes; PixelShuffle stays within four dimensions.
    lowering = Lowering(prelu="relu")

    def _convert(
        self, graph: ExportGraph, signature: Signature, precision: Precision, photos: Sequence[Tensor], path: Path
    ) -> None:
        """See the base class."""
        import litert_torch

        module, settings = graph, {}
        if precision == "int8":
            quantizer = _quantizer()
            module = quantised_by(quantizer, graph, photos, fold_quantize=False)
            settings = {"quant_config": litert_torch.quantize.quant_config.QuantConfig(pt2e_quantizer=quantizer)}
        litert_torch.convert(module, (signature.example(),), **settings).export(str(path))

    def _open(self, path: Path, threads: int) -> Runner:
        """See the base class."""
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(model_path=str(path), num_threads=threads)
        interpreter.allocate_tensors()
        (entry,), (out,) = interpreter.get_input_details(), interpreter.get_output_details()

        def run(image: np.ndarray) -> np.ndarray:
            interpreter.set_tensor(entry["index"], _in_levels(np.ascontiguousarray(image), entry))
            interpreter.invoke()
            return _in_floats(interpreter.get_tensor(out["index"]), out)

        return run


def _quantizer() -> Any:
    from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config

    class OfTheNetwork(PT2EQuantizer):
        """Leaves colours in float: its own filters by name and by type find no operator that has weights."""

        def annotate(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
            model = super().annotate(model)
            for node in model.graph.nodes:
                if node.op == "call_function" and not is_of_the_network(node):
                    node.meta.pop("quantization_annotation", None)
            return model

    return OfTheNetwork().set_global(get_symmetric_quantization_config(is_per_channel=True, is_dynamic=False))


def _in_levels(image: np.ndarray, entry: dict) -> np.ndarray:
    """Floats as the file takes them: bytes with a step and a zero point, or as they are."""
    if entry["dtype"] == np.float32:
        return image
    step, zero = entry["quantization"]
    limits = np.iinfo(entry["dtype"])
    return np.clip(np.round(image / step) + zero, limits.min, limits.max).astype(entry["dtype"])


def _in_floats(image: np.ndarray, out: dict) -> np.ndarray:
    if out["dtype"] == np.float32:
        return image
    step, zero = out["quantization"]
    return (image.astype(np.float32) - zero) * np.float32(step)
