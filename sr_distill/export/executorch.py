"""ExecuTorch with XNNPACK, PyTorch's own runtime for phones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .formats import Format, Precision, Runner, register_format
from .graph import ExportGraph, Signature
from .pt2e import is_of_the_network, quantised_by


@register_format
class ExecuTorch(Format):
    """``.pte`` for one size of images: memory is planned ahead. int8 is made by PyTorch's own quantiser for XNNPACK."""

    name = "executorch"
    runtime = "ExecuTorch"
    suffix = ".pte"
    packages = {"executorch": "executorch", "torchao": "torchao"}
    precisions = ("fp32", "int8")  # half precision has no kernels in XNNPACK that were faster, and files as large
    ios = ("rgb", "y")
    dynamic = False

    def _convert(
        self, graph: ExportGraph, signature: Signature, precision: Precision, photos: Sequence[Tensor], path: Path
    ) -> None:
        """See the base class."""
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        module = quantised_by(_quantizer(), graph, photos) if precision == "int8" else graph
        program = torch.export.export(module, (signature.example(),))
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        path.write_bytes(lowered.to_executorch().buffer)

    def _open(self, path: Path, threads: int) -> Runner:
        """See the base class."""
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime

        portable_lib._unsafe_reset_threadpool(threads)
        method = Runtime.get().load_program(str(path)).load_method("forward")

        def run(image: np.ndarray) -> np.ndarray:
            # It reads memory in the order of NCHW, whatever the strides say, without a word.
            return method.execute((torch.from_numpy(np.ascontiguousarray(image)),))[0].clone().numpy()

        return run


def _quantizer() -> Any:
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )

    config = get_symmetric_quantization_config(is_per_channel=True)
    return XNNPACKQuantizer().set_global(config).set_filter_function(is_of_the_network)
