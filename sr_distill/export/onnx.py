"""ONNX, for ONNX Runtime on phones, desktops and in browsers, and for everything that reads it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..models.quantised import Ranges
from .formats import Format, Precision, Runner, register_format
from .graph import ExportGraph, Signature

OPSET = 18


@register_format
class Onnx(Format):
    """``.onnx``, a single file; int8 in the QDQ form, whose last additions, PixelShuffle and colours stay in float."""

    name = "onnx"
    runtime = "ONNX Runtime"
    suffix = ".onnx"
    packages = {"onnx": "onnx", "onnxscript": "onnxscript", "onnxruntime": "onnxruntime"}

    def _convert(
        self, graph: ExportGraph, signature: Signature, precision: Precision, photos: Sequence[Tensor], path: Path
    ) -> None:
        """See the base class."""
        with tempfile.TemporaryDirectory() as work:
            plain = path if precision == "fp32" else Path(work) / "plain.onnx"
            write_onnx(graph, signature, plain)
            if precision == "fp16":
                _halve(plain, path)
            elif precision == "int8":
                quantise(plain, [photo.numpy() for photo in photos], graph.ranges, path)

    def _open(self, path: Path, threads: int) -> Runner:
        """See the base class."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        (name,) = (entry.name for entry in session.get_inputs())
        return lambda image: session.run(None, {name: image})[0]


def write_onnx(graph: ExportGraph, signature: Signature, path: Path) -> None:
    """Write the graph in float32."""
    sizes = None
    if signature.size is None:
        names = (torch.export.Dim(side, min=signature.smallest) for side in ("height", "width"))
        sizes = (dict(zip(signature.sides, names)),)
    torch.onnx.export(
        graph,
        (signature.example(),),
        str(path),
        dynamo=True,
        opset_version=OPSET,
        input_names=["image"],
        output_names=["sr"],
        dynamic_shapes=sizes,
        external_data=False,
        verbose=False,
    )
    _without_traces(path)


def _without_traces(path: Path) -> None:
    """Take out what the exporter notes at each operator: the lines of source that it came from, with their places on this machine."""
    import onnx

    model = onnx.load(str(path))
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    onnx.save(model, str(path))


def quantise(source: Path, photos: Sequence[np.ndarray], ranges: Ranges, path: Path) -> None:
    """Convolutions in 8 bits, with a scale for each output channel; ranges of maps are those given, else those of the photos."""
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as work:
        prepared = str(Path(work) / "prepared.onnx")
        quant_pre_process(str(source), prepared, skip_symbolic_shape=True)
        graph = onnx.load(prepared).graph
        quantize_static(
            prepared,
            str(path),
            _Photos(photos),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[node.name for node in graph.node if not _is_of_the_body(node)],
            extra_options={"TensorQuantOverrides": _given(graph, ranges)},
        )
    _give_floats_to_floats(path)


def _is_of_the_body(node: object) -> bool:
    """Whether a node is one of the network's convolutions or its ReLU: colours and the sum with the anchor lose levels in 8 bits."""
    if node.op_type == "Relu":
        return True
    return node.op_type == "Conv" and node.input[1].startswith("net.") and not node.input[1].startswith("net.anchor")


def _given(graph: Any, ranges: Ranges) -> dict[str, list[dict[str, Any]]]:
    """The ranges of convolutions as ONNX Runtime's quantiser takes them: by the names of what goes in and comes out."""
    relus = {node.input[0]: node.output[0] for node in graph.node if node.op_type == "Relu"}
    given = {}
    for node in graph.node:
        name = node.input[1].removeprefix("net.").removesuffix(".weight") if node.op_type == "Conv" else ""
        if name in ranges:
            into, out = ranges[name]
            given[relus.get(node.output[0], node.output[0])] = out
            if into is not None:
                given[node.input[0]] = into
    return {
        tensor: [{"rmin": np.float32(least), "rmax": np.float32(largest)}] for tensor, (least, largest) in given.items()
    }


def _give_floats_to_floats(path: Path) -> None:
    """Let convolutions that stay in float read floats: the quantiser gives a map that it has rounded to all who read it."""
    import onnx

    model = onnx.load(str(path))
    made_by = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if (
            node.op_type == "Conv"
            and not _is_rounded(made_by.get(node.input[1]))
            and _is_rounded(made_by.get(node.input[0]))
        ):
            node.input[0] = made_by[made_by[node.input[0]].input[0]].input[0]
    onnx.save(model, str(path))


def _is_rounded(maker: Any) -> bool:
    return maker is not None and maker.op_type == "DequantizeLinear"


class _Photos:
    """Photos as ONNX Runtime's quantiser asks for them."""

    def __init__(self, photos: Sequence[np.ndarray]) -> None:
        self._rest = iter(photos)

    def get_next(self) -> dict[str, np.ndarray] | None:
        photo = next(self._rest, None)
        return None if photo is None else {"image": photo}


def _halve(source: Path, path: Path) -> None:
    """Weights and arithmetic in half precision, input and output as before."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(str(source)), keep_io_types=True), str(path))
