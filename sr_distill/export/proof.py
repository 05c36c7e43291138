"""That an exported model does what PyTorch does: compared on photographs, measured on a benchmark, timed."""

from __future__ import annotations

import functools
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data import embedded
from ..errors import UserError
from ..evaluate import mean_scores, time_passes
from ..models import SRModel
from .formats import Format, Precision, Runner
from .graph import ExportGraph, Signature
from .photos import inputs

TOLERANCE_DB: Mapping[Precision, float] = {"fp32": 80.0, "fp16": 55.0, "int8": 32.0}
"""Least PSNR in dB between an exported model's output and PyTorch's in float32. A level of 8 bits is 48 dB."""

UNROUNDED_DB = 75.0
"""From here on an output cannot be that of a network in 8 bits: quantisers that do not find an operator leave it as it is without a word."""

RUNS = 10


@dataclass(frozen=True)
class Parity:
    """How near a runtime is to PyTorch in float32, on photographs that int8 was not calibrated with.

    Attributes:
        max_difference: of an image in [0, 1].
        psnr_db: of all pixels together; infinite where all are equal.
    """

    max_difference: float
    psnr_db: float
    photos: list[str]


def compare(graph: ExportGraph, run: Runner, signature: Signature) -> Parity:
    """Run both on the held-out photographs."""
    files = embedded.held_out_photos()
    peak = 255.0 if signature.io == "uint8" else 1.0
    differences = []
    for image in inputs(files, signature):
        with torch.no_grad():
            wanted = graph(image).numpy().astype(np.float64)
        got = np.asarray(run(image.numpy())).astype(np.float64)
        if got.shape != wanted.shape:
            raise UserError(f"the output has the shape {got.shape}, not {wanted.shape}.")
        differences.append((got - wanted).ravel() / peak)
    error = np.concatenate(differences)
    if not np.isfinite(error).all():
        raise UserError("the output has values that are not finite.")
    square = float(np.mean(error**2))
    psnr = -10 * float(np.log10(square)) if square else float("inf")
    return Parity(float(np.abs(error).max()), psnr, [path.name for path in files])


def latency(
    kind: Format, path: Path, signature: Signature, size: tuple[int, int], threads: Sequence[int]
) -> list[dict[str, Any]]:
    """Median and least milliseconds of a pass, for each number of threads; the least is what other work on the machine disturbs least."""
    height, width = signature.size or size
    image = torch.rand_like(signature.example(height, width), dtype=torch.float32)
    image = (image * 255).byte().numpy() if signature.io == "uint8" else image.numpy()
    rows = []
    for count in threads:
        times = time_passes(functools.partial(kind.open(path, count), image), RUNS)
        rows.append(
            {
                "size": f"{height}x{width}",
                "threads": count,
                "median_ms": round(statistics.median(times), 2),
                "min_ms": round(min(times), 2),
            }
        )
    return rows


def psnr(model: SRModel, root: Path | None) -> dict[str, float]:
    """PSNR-Y by set: Set5 where it is at hand, else the embedded photographs."""
    sets = ["Set5"] if root is not None and (root / "benchmarks/Set5").is_dir() else [embedded.NAME]
    return {name: round(scores["psnr_y"], 4) for name, scores in mean_scores(model, sets, ["psnr_y"], root).items()}


def processor() -> str:
    """What this machine's processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        import platform

        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"
