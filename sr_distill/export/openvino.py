"""OpenVINO, for Intel's processors, GPUs and NPUs."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .formats import Format, Precision, Runner, register_format
from .graph import ExportGraph, Signature
from .onnx import Onnx


@functools.cache
def _core() -> Any:
    """The one engine of this process, for ever.

    Each engine gives the main thread a stack for signal handlers and, when it ends, puts back the one that it found. Where two end in
    the order in which they began, that is memory which is not there any more, and the next signal (Ctrl-C, a child that ends) kills
    the process.
    """
    import openvino

    return openvino.Core()


@register_format
class OpenVino(Format):
    """``.xml`` and ``.bin``, made from the ONNX file; fp16 is that of the weights, int8 that of ONNX Runtime's quantiser."""

    name = "openvino"
    runtime = "OpenVINO"
    suffix = ".xml"
    packages = {**Onnx.packages, "openvino": "openvino"}

    def _convert(
        self, graph: ExportGraph, signature: Signature, precision: Precision, photos: Sequence[Tensor], path: Path
    ) -> None:
        """See the base class."""
        import openvino

        with tempfile.TemporaryDirectory() as work:
            source = Path(work) / "model.onnx"
            Onnx().convert(graph, signature, "int8" if precision == "int8" else "fp32", photos, source)
            openvino.save_model(openvino.convert_model(str(source)), str(path), compress_to_fp16=precision == "fp16")

    def _open(self, path: Path, threads: int) -> Runner:
        """See the base class."""
        # Else a processor with bfloat16 rounds to it.
        settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        model = _core().compile_model(str(path), "CPU", settings)
        return lambda image: np.array(model(image)[0])
