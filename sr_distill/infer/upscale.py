"""Upscale an image of any size, in tiles where it is large."""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..models import ModelSpec, SRModel, Teacher, model_key
from ..models.receptive_field import receptive_field
from . import alpha as transparency
from .rows import Pixels, Rows, Window, in_type, rows_of
from .runner import Precision, Runner
from .spans import Span, batches, spans

TILE = 256
WIDE = 64
"""Context of the tiles of a network of which no context makes them equal to the whole image; they are blended over half of it."""

Done = Callable[[int], object]

_BAND_BYTES = 2**27  # of a row of tiles' output: very wide images have lower tiles
_LEAST = 32  # rows of a tile, however wide the image is
_BATCH_PIXELS = 2**19  # shown at once to a network on a GPU


class Upscaler:
    """A network, and how it is run over images.

    An image larger than a tile is cut, with as much context around each tile as the network sees; only a tile's own pixels are kept, which
    are those of the image in one piece. On a GPU a few tiles of one size are on it at a time; on a processor one for each thread. If memory
    does not suffice for a tile, it is cut in two, with context, and *that tile* is computed again.

    Args:
        model: is left as it is, but for a network that this package did not build, which should be in eval mode and goes to ``device``.
        device: where it runs.
        tile: side of a tile in pixels of the input, without its context; 0: never cut.
        precision: fp32; bf16 or fp16: the network in it, where an output that is not finite is computed again in fp32; auto: fp16 on CUDA,
            else fp32 (bf16 has not the digits that 8 bits take).
        self_ensemble: the mean over 8 flips and turns, at 8 times the cost.
        alpha: how transparency is upscaled.
        say: is told, for each image that is cut, if the network sees too far for that.

    Raises:
        UserError: there is no such precision or alpha, or the network is exported and has its own precision.

    Attributes:
        threads: tiles that are computed at the same time: on a processor as many as PyTorch has threads, if the network is of this package.
    """

    def __init__(
        self,
        model: SRModel | Teacher,
        device: torch.device,
        tile: int = TILE,
        precision: Precision = "auto",
        self_ensemble: bool = False,
        alpha: transparency.Alpha = "network",
        say: Callable[[str], object] = warnings.warn,
    ) -> None:
        _check(model.spec, precision, alpha)
        self._model = model.model if isinstance(model, Teacher) else model
        self._turns = model.self_ensemble if isinstance(model, Teacher) else self_ensemble
        self.scale, self.multiple, self._name = model.spec.scale, model.spec.size_multiple, model.spec.name
        # What another runtime or package runs may keep something of a call until the next one: one at a time, with all of PyTorch's threads.
        alone = device.type != "cpu" or model.spec.architecture is None
        self.threads = 1 if alone else torch.get_num_threads()
        self._runner = Runner(self._model, self._turns, device, precision, alpha, tile > 0, self.threads)
        self._device, self._tile, self._precision, self._say = device, tile, precision, say
        self._sight: tuple[int, bool] | None = None
        self._measuring = threading.Lock()
        self._workers: ThreadPoolExecutor | None = None

    def __call__(self, image: Rows, dtype: type | None = None, done: Done = lambda pixels: None) -> Rows:
        """The image, ``scale`` times as high and wide, in bands as they are finished.

        Args:
            dtype: uint8, uint16 or float32; None: as the image.
            done: is told the pixels of the input that each tile has done.

        Raises:
            ImageError: what the network gives is not finite (when bands are taken).
            RuntimeError, MemoryError: memory does not suffice.
        """
        kind = np.dtype(dtype or image.dtype)
        across, down = self._cut(image, kind)
        if len(across) * len(down) > 1 and not self._seen()[1]:
            self._say(
                f"{self._name} sees more of an image than a tile shows it: images that are cut into tiles of {self._tile} pixels "
                f"come out a little different than in one piece, which takes more memory (tile 0). Tiles are blended over {WIDE} pixels."
            )
        bands = lambda: self._bands(image, across, down, kind, done)  # noqa: E731
        return Rows(image.height * self.scale, image.width * self.scale, image.channels, kind, bands)

    @property
    def key(self) -> str:
        """A hash of the weights and of how they are used."""
        return f"{model_key(self._model)}{'_x8' * self._turns} {self._precision}"

    @property
    def context(self) -> int:
        """Pixels around a tile that the network is shown."""
        return self._seen()[0]

    def context_for(self, image: Rows) -> int:
        """Pixels around a tile that its output depends on."""
        return self.context + (transparency.REACH if image.has_alpha else 0)

    def _seen(self) -> tuple[int, bool]:
        """What :func:`context_of` says of the network, measured when it is first asked for."""
        # Windows of a flipped image begin at its other end, wherever that is: tiles cannot begin at the same places.
        if self._turns and self.multiple > 1:
            return WIDE, False
        with self._measuring:
            if self._sight is None:
                self._sight = context_of(self._model)
            return self._sight

    def _cut(self, image: Rows, kind: np.dtype) -> tuple[list[Span], list[Span]]:
        """The tiles' columns and rows."""
        if max(image.height, image.width) <= self._tile or self._tile == 0:
            return spans(image.width, 0, 0), spans(image.height, 0, 0)
        fade = 0 if self._seen()[1] else min(WIDE // 2, self._tile // 4)
        context = self.context_for(image)
        of_a_row = image.width * image.channels * self.scale**2 * (kind.itemsize if fade == 0 else 4)
        low = min(self._tile, max(_LEAST, _BAND_BYTES // of_a_row))
        sides = ((image.width, self._tile), (image.height, low))
        return tuple(spans(side, tile, context, self.multiple, fade) for side, tile in sides)

    def _bands(
        self, image: Rows, across: Sequence[Span], down: Sequence[Span], kind: np.dtype, done: Done
    ) -> Iterator[Pixels]:
        window, carried = Window(image), None
        context = functools.partial(self.context_for, image)
        for rows in down:
            strip = window.rows(rows.first, rows.last)
            band = self._band(strip, rows, across, kind, context, done)
            if rows.before or rows.after:
                band *= rows.weights(self.scale).numpy()[:, None, None]
                if carried is not None:
                    band[: len(carried)] += carried
                finished = len(band) - 2 * rows.after * self.scale
                band, carried = band[:finished], band[finished:]
            yield in_type(band, kind)

    def _band(
        self, strip: Pixels, rows: Span, across: Sequence[Span], kind: np.dtype, context: Callable[[], int], done: Done
    ) -> Pixels:
        """The output of one row of tiles; in float32 where tiles are blended."""
        blended = bool(rows.before or rows.after or any(piece.before or piece.after for piece in across))
        kept, kind = rows.kept(self.scale), np.dtype(np.float32) if blended else kind
        width = across[-1].stop * self.scale
        band = (np.zeros if blended else np.empty)((kept.stop - kept.start, width, strip.shape[2]), kind)

        def compute(group: list[Span]) -> list[Pixels]:
            large = self._runner(np.stack([strip[:, piece.shown] for piece in group]), context)
            parts = [_as(sr[:, kept, piece.kept(self.scale)].permute(1, 2, 0), kind) for piece, sr in zip(group, large)]
            for piece in group:
                done((rows.stop - rows.start) * (piece.stop - piece.start))
            return parts

        most = 1 if self._device.type == "cpu" else max(1, _BATCH_PIXELS // max(1, len(strip) * self._tile))
        groups = list(batches(across, most))
        for group, parts in zip(groups, self._map(compute, groups)):
            for piece, part in zip(group, parts):
                if blended:
                    band[:, piece.target(self.scale)] += part * piece.weights(self.scale).numpy()[:, None]
                else:
                    band[:, piece.target(self.scale)] = part
        return band

    def _map(self, compute: Callable[[list[Span]], list[Pixels]], groups: list[list[Span]]) -> Iterator[list[Pixels]]:
        """In order; on a processor by as many threads at once, each with a tile of its own, which scales better than sharing one."""
        if self.threads == 1 or len(groups) == 1:
            return map(compute, groups)
        if self._workers is None:
            self._workers = workers(self.threads, 1)
        return self._workers.map(compute, groups)


def _check(spec: ModelSpec, precision: str, alpha: str) -> None:
    for key, value, allowed in (("precision", precision, Precision), ("alpha", alpha, transparency.Alpha)):
        if value not in get_args(allowed):
            raise UserError(f"{key} is '{value}'; allowed: {', '.join(get_args(allowed))}.")
    if spec.runtime is not None and precision in ("bf16", "fp16"):
        raise UserError(
            f"{spec.name} runs in {spec.runtime}, whose precision is that of its export: leave out precision {precision}."
        )


def upscale(
    model: SRModel | Teacher,
    lr: Tensor,
    device: torch.device,
    tile: int = TILE,
    say: Callable[[str], object] = warnings.warn,
    precision: Precision = "fp32",
) -> Tensor:
    """Upscale uint8 (C, H, W), or floats in [0, 1], to the same dtype (C, H*scale, W*scale), on the CPU; C as in :class:`Rows`.

    ``tile``, ``say`` and ``precision`` are those of :class:`Upscaler`.
    """
    return upscale_tensor(Upscaler(model, device, tile, precision, say=say), lr)


def upscale_tensor(upscaler: Upscaler, lr: Tensor) -> Tensor:
    """As :func:`upscale`, for many images."""
    pixels = (lr.float() if lr.is_floating_point() else lr).permute(1, 2, 0).contiguous().cpu().numpy()
    return torch.from_numpy(upscaler(rows_of(pixels)).whole()).permute(2, 0, 1).to(lr.dtype)


def workers(count: int, threads: int) -> ThreadPoolExecutor:
    """Python's threads in each of which PyTorch has ``threads`` of its own; elsewhere it keeps as many as it has."""
    before, together = torch.get_num_threads(), threading.Barrier(count)
    pool = ThreadPoolExecutor(count, initializer=lambda: torch.set_num_threads(threads))
    # When all have begun: the setting is each thread's own, and new ones take the last.
    list(pool.map(lambda index: together.wait(), range(count)))
    torch.set_num_threads(before)
    return pool


def context_of(model: SRModel) -> tuple[int, bool]:
    """The context in LR pixels that the network's tiles have, and whether tiles with it equal the whole image."""
    radius = receptive_field(model)
    return (WIDE, False) if radius is None else (radius, True)


def _as(sr: Tensor, kind: np.dtype) -> Pixels:
    """Floats to pixels of a type, clipped, and rounded to the nearest level."""
    sr = sr.float()
    if kind == np.float32:
        return sr.clamp(0, 1).cpu().numpy()
    levels = sr.mul(np.iinfo(kind).max).round_().clamp_(0, np.iinfo(kind).max)
    return (levels.to(torch.uint8) if kind == np.uint8 else levels.int()).cpu().numpy().astype(kind, copy=False)
