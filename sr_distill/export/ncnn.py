"""ncnn, for Android and iOS, on the processor or by Vulkan on the GPU."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from ..errors import UserError
from .formats import Format, Precision, Runner, register_format
from .graph import ExportGraph, Signature


@register_format
class Ncnn(Format):
    """``.param`` and ``.bin``. Repeated channels are converted without a word to a layer that ncnn has not: the anchor is a convolution."""

    name = "ncnn"
    runtime = "ncnn"
    suffix = ".param"
    packages = {"ncnn": "ncnn", "pnnx": "pnnx"}
    precisions = ("fp32", "fp16")  # its quantiser is a program that no Python package brings
    ios = ("rgb", "y")  # bytes become floats in ncnn::Mat::from_pixels, before the network

    def _convert(
        self, graph: ExportGraph, signature: Signature, precision: Precision, photos: Sequence[Tensor], path: Path
    ) -> None:
        """See the base class."""
        import pnnx

        examples = [(signature.example(),)]
        if signature.size is None:
            examples.append((signature.example(96, 80),))  # two sizes: any
        with tempfile.TemporaryDirectory() as work:
            pnnx.export(graph, str(Path(work) / "model.pt"), *examples, fp16=precision == "fp16")
            for suffix in (".param", ".bin"):
                shutil.move(str(Path(work) / f"model.ncnn{suffix}"), path.with_suffix(suffix))

    def _open(self, path: Path, threads: int) -> Runner:
        """See the base class."""
        import ncnn

        net = ncnn.Net()
        net.opt.use_vulkan_compute, net.opt.num_threads = False, threads
        net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
        if net.load_param(str(path)) != 0 or net.load_model(str(path.with_suffix(".bin"))) != 0:
            raise UserError(f"{path}: ncnn cannot load it; a layer of the network is missing there.")

        def run(image: np.ndarray) -> np.ndarray:
            with net.create_extractor() as extractor:
                planes = np.ascontiguousarray(image[0])  # a Mat does not keep the array whose memory it shows alive
                extractor.input("in0", ncnn.Mat(planes).clone())
                failed, out = extractor.extract("out0")
                if failed:
                    raise UserError(
                        f"{path}: ncnn cannot run it for an image of {image.shape[-1]}x{image.shape[-2]} pixels."
                    )
                return np.array(out)[None]

        return run
