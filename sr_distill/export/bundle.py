"""What an export leaves: a folder with the model, its card and lines of code for the app, all of it or nothing."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..errors import UserError
from ..evaluate import count_cost
from ..files import replace_folder, write_json, write_text
from ..models import SRModel, model_key
from ..models.receptive_field import receptive_field
from .formats import FORMATS, PRECISIONS, Format, Precision
from .graph import ExportGraph, Io, Signature
from .proof import TOLERANCE_DB, UNROUNDED_DB, Parity, compare, latency, processor, psnr
from .runtime import CARD, FIXED, open_exported, signature_for, write
from .snippet import describe, snippets


@dataclass(frozen=True)
class Wish:
    """What is to be exported, and what is measured on it.

    Attributes:
        size: of the images that the model takes, None: any, where the runtime can.
        calibration: folder of photos for int8; None: the embedded ones.
        time_at: height and width at which a model for any size is timed.
        threads: of the timings.
        licence: of the weights, for the card.
        data_root: where Set5 may be.
    """

    format: str
    precision: Precision = "fp32"
    io: Io = "rgb"
    size: tuple[int, int] | None = None
    calibration: Path | None = None
    time_at: tuple[int, int] = FIXED
    threads: Sequence[int] = (1, 2)
    licence: str = "not stated in the model's file"
    data_root: Path | None = None


def export_model(
    model: SRModel, wish: Wish, folder: Path, say: Callable[[str], object] = lambda text: None
) -> dict[str, Any]:
    """Export a model into ``folder``, prove it, and return its card.

    The folder appears when all is done and proved; what stood there before is replaced then.

    Raises:
        UserError: the format cannot do what is wished, its runtime is not installed or does not take the network, or the output
            differs from PyTorch's by more than rounding explains (:data:`TOLERANCE_DB`).
    """
    kind = FORMATS[wish.format]
    _check(kind, wish)
    kind.check_installed()
    model = model.cpu().collapsed().eval()
    signature = signature_for(model, wish.format, wish.io, wish.size)
    with replace_folder(folder, CARD) as work:
        return _make(model, kind, wish, signature, work, folder.name, say)


def _make(
    model: SRModel, kind: Format, wish: Wish, signature: Signature, work: Path, name: str, say: Callable[[str], object]
) -> dict[str, Any]:
    path = work / f"{name}{kind.suffix}"
    say(f"{name}: converting ...")
    source = write(model, kind.name, signature, wish.precision, wish.calibration, path)
    run = kind.open(path, 1)
    graph = ExportGraph(model, signature.io, kind.lowering).eval()
    parity = compare(graph, run, signature) if kind.runs_here else None
    if parity is not None and parity.psnr_db < TOLERANCE_DB[wish.precision]:
        raise UserError(
            f"{name}: {kind.runtime}'s output is only {parity.psnr_db:.1f} dB near to PyTorch's (largest difference "
            f"{parity.max_difference:.3g}), and {wish.precision} should be at least {TOLERANCE_DB[wish.precision]:.0f} dB: nothing was written."
        )
    if kind.runs_here and wish.precision == "int8" and compare(source, run, signature).psnr_db > UNROUNDED_DB:
        raise UserError(
            f"{name}: {kind.runtime}'s quantiser has left {model.spec.name} in floats: nothing was written."
        )
    sizes = {
        file.relative_to(work).as_posix(): file.stat().st_size for file in sorted(work.rglob("*")) if file.is_file()
    }
    card = {
        "model": model.spec.name,
        "model_key": model_key(model),
        "file": path.name,
        "format": kind.name,
        "runtime": f"{kind.runtime} {_version(kind)}",
        "precision": wish.precision,
        "io": signature.io,
        "input": describe(signature),
        "output": describe(signature, output=True),
        "scale": signature.scale,
        "size": list(signature.size) if signature.size else None,
        "smallest": signature.smallest,
        "receptive_field": receptive_field(model),
        "bytes": sizes,
        "cost": count_cost(model),
        "parity": None if parity is None else _as_json(parity),
        "licence_of_weights": wish.licence,
        "made_by": f"sr_distill {__version__}, PyTorch {torch.__version__}",
    }
    for file, text in snippets(kind.name, path.name, model.spec.name, signature).items():
        write_text(work / file, text)
    write_json(work / CARD, card)
    if kind.runs_here:
        say(f"{name}: measuring ...")
        card["psnr_y"] = {
            "pytorch": psnr(model.unrounded(), wish.data_root),
            kind.name: psnr(open_exported(work), wish.data_root),
        }
        card["latency"] = {
            "processor": processor(),
            "passes": latency(kind, path, signature, wish.time_at, wish.threads),
        }
        write_json(work / CARD, card)
    return card


def _check(kind: Format, wish: Wish) -> None:
    if wish.precision not in kind.precisions:
        raise UserError(
            f"{kind.name} has no {wish.precision}; it has {', '.join(p for p in PRECISIONS if p in kind.precisions)}."
        )
    if wish.io not in kind.ios:
        raise UserError(f"{kind.name} has no --io {wish.io}; it has {', '.join(kind.ios)}.")


def _as_json(parity: Parity) -> dict[str, Any]:
    values = asdict(parity)
    return {**values, "psnr_db": None if math.isinf(parity.psnr_db) else round(parity.psnr_db, 2)}


def _version(kind: Format) -> str:
    return importlib.metadata.version(list(kind.packages.values())[-1])
