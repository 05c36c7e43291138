"""Exported models as everybody sees a model: RGB in [0, 1] of any size, computed by another runtime."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data.bicubic import mirrored
from ..errors import UserError
from ..evaluate import RUNTIMES, count_cost
from ..models import ModelSpec, SRModel, for_int8, model_key
from ..models.receptive_field import declare, receptive_field
from .formats import FORMATS, Precision, Runner
from .graph import ExportGraph, Io, Signature
from .photos import calibration_files, inputs

CARD = "card.json"

FIXED = (256, 256)
"""Size for runtimes that take one size only, where none is given."""


class RuntimeNet(nn.Module):
    """A network that another runtime runs.

    A model for one size of images is run window by window; windows overlap by what the network sees, so that the image comes out as in one
    piece. An image that is smaller than the model's size is continued by its mirror image.

    Args:
        run: one pass.
        signature: of the model.
        radius: how far the network sees, in LR pixels; None: the whole image.
        cost: tells parameters and the other counts that :func:`sr_distill.evaluate.profile_model` would make of the network.
        key: another one for other weights, as :func:`sr_distill.models.model_key`.
    """

    def __init__(
        self, run: Runner, signature: Signature, radius: int | None, cost: Callable[[], Mapping[str, int]], key: str
    ) -> None:
        super().__init__()
        self._run, self._signature, self.cost, self.key = run, signature, cost, key
        self._radius = WIDE if radius is None else radius
        if signature.size is not None and min(signature.size) <= 2 * self._radius:
            self._radius = max(0, (min(signature.size) - 1) // 4)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] to (B, C, H*scale, W*scale)."""
        return torch.stack([self._whole(one) for one in image.detach().float().cpu()]).to(image.device, image.dtype)

    def _whole(self, image: Tensor) -> Tensor:
        size, scale = self._signature.size, self._signature.scale
        if size is None:
            return self._pass(image)
        sr = image.new_empty(image.shape[0], *(side * scale for side in image.shape[1:]))
        for rows in _windows(image.shape[1], size[0], self._radius):
            for cols in _windows(image.shape[2], size[1], self._radius):
                part = image
                for dim, (start, _, _), side in zip((1, 2), (rows, cols), size):
                    part = part.index_select(dim, mirrored(torch.arange(start, start + side), image.shape[dim]))
                out = self._pass(part)
                (row, top, bottom), (col, left, right) = rows, cols
                kept = out[
                    :, (top - row) * scale : (bottom - row) * scale, (left - col) * scale : (right - col) * scale
                ]
                sr[:, top * scale : bottom * scale, left * scale : right * scale] = kept
        return sr

    def _pass(self, image: Tensor) -> Tensor:
        """One image that has the model's size."""
        if self._signature.io == "uint8":
            pixels = image.mul(255).round().clamp(0, 255).byte().permute(1, 2, 0)
            out = self._run(np.ascontiguousarray(pixels.numpy())[None])[0]
            return torch.from_numpy(np.ascontiguousarray(out)).permute(2, 0, 1).float() / 255
        out = self._run(np.ascontiguousarray(image.numpy())[None])[0]
        return torch.from_numpy(np.array(out, dtype=np.float32))


WIDE = 32
"""Context of the windows of a network that sees the whole image."""


def _windows(length: int, side: int, radius: int) -> Iterator[tuple[int, int, int]]:
    """Start of each window of ``side`` pixels, and from where to where its output is kept."""
    if length <= side:
        yield 0, 0, length
        return
    done = 0
    while done < length:
        start = min(max(0, done - radius), length - side)
        stop = length if start + side == length else start + side - radius
        yield start, done, stop
        done = stop


def open_exported(path: Path, threads: int = 0) -> SRModel:
    """Open an exported model: its folder, or the main file in it, which lies beside its card.

    Args:
        threads: of the runtime; 0: as many as PyTorch has.

    Raises:
        UserError: it is not complete, the runtime is not installed, or does not run on this machine.
    """
    card = read_card(path)
    kind = FORMATS[card["format"]]
    kind.check_runs()
    main = _folder(path) / card["file"]
    if not main.exists():
        raise UserError(f"{main}: the file of the exported model is missing; export it again.")
    signature = signature_of(card)
    run = kind.open(main, threads or torch.get_num_threads())
    files = sorted(path for path in main.parent.iterdir() if path.is_file())
    key = hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()
    runtime = f"{kind.name} {card['precision']}"
    return _as_model(card["model"], run, runtime, signature, card["receptive_field"], lambda: card["cost"], key)


def read_card(path: Path) -> dict[str, Any]:
    """The card of an exported model.

    Raises:
        UserError: there is none, or it is damaged.
    """
    file = _folder(path) / CARD
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
        if card["format"] in FORMATS:
            return card
        raise UserError(f"{file}: format '{card['format']}' is not one of {', '.join(FORMATS)}.")
    except OSError:
        raise UserError(f"{path}: an exported model lies in a folder with its {CARD}, and there is none.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: damaged ({error!r}); export the model again.") from None


def is_exported(path: Path) -> bool:
    """Whether a path is that of an exported model."""
    return path.suffix in {kind.suffix for kind in FORMATS.values()} or (path / CARD).is_file()


def signature_of(card: dict[str, Any]) -> Signature:
    """What goes in and comes out, of a card."""
    return Signature(card["io"], card["scale"], tuple(card["size"]) if card["size"] else None, card["smallest"])


def in_runtime(
    model: SRModel, runtime: str, precision: Precision = "fp32", size: tuple[int, int] | None = None, threads: int = 0
) -> SRModel:
    """The model as a runtime runs it: exported to a folder that is removed when it is not needed any more.

    Raises:
        UserError: the runtime is not installed, or cannot take the network.
    """
    kind = FORMATS[runtime]
    kind.check_runs()
    model = model.cpu()
    signature = signature_for(model, runtime, "rgb", size)
    folder = Path(tempfile.mkdtemp(prefix="sr_distill."))
    try:
        path = folder / f"model{kind.suffix}"
        write(model, kind.name, signature, precision, None, path)
        run = kind.open(path, threads or torch.get_num_threads())
        key = f"{model_key(model)} {runtime} {precision}"
        named, cost = f"{runtime} {precision}", lambda: count_cost(model)
        opened = _as_model(model.spec.name, run, named, signature, receptive_field(model), cost, key)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(opened.net, shutil.rmtree, folder, ignore_errors=True)
    return opened


def write(
    model: SRModel, runtime: str, signature: Signature, precision: Precision, calibration: Path | None, path: Path
) -> ExportGraph:
    """Convert a model to a runtime's files; returns the graph that they were made from, in floats.

    Raises:
        UserError: the runtime's converter does not take the network.
    """
    kind, photos = FORMATS[runtime], []
    if precision == "int8":
        files = calibration_files(calibration)
        photos = inputs(files, signature)
        if kind.rounds_maps:
            with kind.errors(f"{kind.runtime} does not take {model.spec.name}"):
                model = for_int8(model, inputs(files, Signature("rgb", model.spec.scale, None)))
    graph = ExportGraph(model, signature.io, kind.lowering).eval()
    kind.convert(graph, signature, precision, photos, path)
    return graph


def signature_for(model: SRModel, runtime: str, io: Io, size: tuple[int, int] | None) -> Signature:
    """What a model's export takes: graphs have no padding, by which a model comes to take any size.

    Args:
        size: None: any, where the runtime can.

    Raises:
        UserError: the network does not take this size; says which there are.
    """
    multiple, smallest = model.spec.size_multiple, model.spec.min_size
    signature = Signature(io, model.spec.scale, size or (None if FORMATS[runtime].dynamic else FIXED))
    if signature.size is None and multiple > 1:
        raise UserError(
            f"{model.spec.name} takes sizes that are multiples of {multiple}, from {smallest}: export it for one (--size HxW)."
        )
    if signature.size is not None and any(side % multiple or side < smallest for side in signature.size):
        height, width = signature.size
        raise UserError(f"--size {height}x{width}: {model.spec.name} takes multiples of {multiple}, from {smallest}.")
    return dataclasses.replace(signature, smallest=max(signature.smallest, smallest))


def _as_model(
    name: str,
    run: Runner,
    runtime: str,
    signature: Signature,
    radius: int | None,
    cost: Callable[[], Mapping[str, int]],
    key: str,
) -> SRModel:
    net = RuntimeNet(run, signature, radius, cost, key)
    color, smallest = "y" if signature.io == "y" else "rgb", signature.smallest if signature.size is None else 1
    model = SRModel(net, ModelSpec(name, signature.scale, color, min_size=smallest, runtime=runtime)).eval()
    declare(model, radius if signature.size is None else 0)  # windows are its own business
    return model


def _folder(path: Path) -> Path:
    return path if (path / CARD).is_file() else path.parent


def _timed(runtime: str) -> Callable[[SRModel, Tensor], Callable[[Tensor], Tensor]]:
    def prepare(model: SRModel, lr: Tensor) -> Callable[[Tensor], Tensor]:
        height, width = lr.shape[-2:]
        return in_runtime(model, runtime, size=None if FORMATS[runtime].dynamic else (height, width))

    return prepare


RUNTIMES.update({name: _timed(name) for name, kind in FORMATS.items() if kind.runs_here})
