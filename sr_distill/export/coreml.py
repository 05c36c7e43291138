"""Core ML, for Apple's processors, GPUs and Neural Engines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .formats import Format, Precision, Runner, register_format
from .graph import ExportGraph, Signature

LARGEST = 2048


@register_format
class CoreMl(Format):
    """``.mlpackage``, an ML program for iOS 16; int8 is that of the weights alone.

    It runs on Apple's systems only: elsewhere its structure is checked and its numbers are not.
    """

    name = "coreml"
    runtime = "Core ML"
    suffix = ".mlpackage"
    packages = {"coremltools": "coremltools"}
    ios = ("rgb", "y")  # Core ML takes pictures as they are, when the app declares them so
    rounds_maps = False
    runs_here = False

    def _convert(
        self, graph: ExportGraph, signature: Signature, precision: Precision, photos: Sequence[Tensor], path: Path
    ) -> None:
        """See the base class."""
        import coremltools

        example = signature.example()
        shape = example.shape
        traced = torch.jit.trace(graph, example, check_trace=False)
        if signature.size is None:
            sides = [coremltools.RangeDim(signature.smallest, LARGEST, default=256) for _ in range(2)]
            shape = coremltools.Shape((*shape[:2], *sides))
        kind = coremltools.precision
        model = coremltools.convert(
            traced,
            convert_to="mlprogram",
            minimum_deployment_target=coremltools.target.iOS16,
            inputs=[coremltools.TensorType(name="image", shape=shape)],
            outputs=[coremltools.TensorType(name="sr")],
            compute_precision=kind.FLOAT32 if precision == "fp32" else kind.FLOAT16,
        )
        if precision == "int8":
            import coremltools.optimize.coreml as optimize

            config = optimize.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=0)
            model = optimize.linear_quantize_weights(model, optimize.OptimizationConfig(global_config=config))
        model.save(str(path))

    def _open(self, path: Path, threads: int) -> Runner:
        """See the base class."""
        import coremltools

        spec = coremltools.utils.load_spec(str(path))
        inputs, outputs = ([each.name for each in side] for side in (spec.description.input, spec.description.output))
        if spec.WhichOneof("Type") != "mlProgram" or inputs != ["image"] or outputs != ["sr"]:
            raise UserError(f"{path}: not the ML program that was to be written (inputs {inputs}, outputs {outputs}).")

        def run(image: np.ndarray) -> np.ndarray:
            model = coremltools.models.MLModel(str(path))
            return model.predict({"image": image})["sr"]

        return run
