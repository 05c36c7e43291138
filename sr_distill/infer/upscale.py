"""Upscale an image of any size, in tiles where it is large."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..data.images import to_uint8
from ..devices import is_out_of_memory
from ..errors import ImageError
from ..models import Deployed, SRModel, Teacher, self_ensembled
from ..models.receptive_field import receptive_field
from . import alpha as transparency
from .rows import Pixels, Rows, Window, rows_of
from .spans import Span, batches, spans

Precision = Literal["auto", "fp32", "bf16", "fp16"]

TILE = 256
WIDE = 64
"""Context of the tiles of a network of which no context makes them equal to the whole image; they are blended over half of it."""

_BAND_BYTES = 2**27  # of a row of tiles' output: very wide images have lower tiles
_LEAST = 32  # side of a tile below which cutting it further saves no memory
_BATCH_PIXELS = 2**19  # shown at once to a network on a GPU


class Upscaler:
    """A network, and how it is run over images.

    An image larger than a tile is cut, with as much context around each tile as the network sees; only a tile's own pixels are kept, which
    are those of the image in one piece. Only one tile (on a GPU: a few of one size) is on the device at a time. If memory does not suffice
    for a tile, it is cut in two, with context, and *that tile* is computed again.

    Args:
        model: in eval mode; it goes to ``device``.
        device: where it runs.
        tile: side of a tile in pixels of the input, without its context; 0: never cut.
        precision: fp32; bf16 or fp16: the network in it, where an output that is not finite is computed again in fp32; auto: fp16 on CUDA,
            else fp32 (bf16 has not the digits that 8 bits take).
        self_ensemble: the mean over 8 flips and turns, at 8 times the cost.
        alpha: how transparency is upscaled.
        say: is told, for each image that is cut, if the network sees too far for that.
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
        teacher = model if isinstance(model, Teacher) else Teacher(model, self_ensemble)
        self.scale, self._name = model.spec.scale, model.spec.name
        self.key = f"{teacher.key} {precision}"
        self.multiple = model.spec.size_multiple
        self._teacher = teacher
        self._network = Deployed(teacher.model).to(device, memory_format=torch.channels_last)
        self._turns, self._alpha = teacher.self_ensemble, alpha
        self._device, self._tile, self._say = device, tile, say
        self._autocast = {"auto": torch.float16 if device.type == "cuda" else None, "bf16": torch.bfloat16,
                          "fp16": torch.float16, "fp32": None}[precision]  # fmt: skip
        self._too_large: int | None = None  # pixels of the smallest tile that memory did not suffice for

    @property
    def context(self) -> int:
        """Pixels around a tile that it is shown; measured when it is first asked for."""
        return self._sight[0]

    @property
    def exact(self) -> bool:
        """Whether tiles with this context equal the whole image."""
        return self._sight[1]

    @functools.cached_property
    def _sight(self) -> tuple[int, bool]:
        return context_of(self._teacher)

    def __call__(
        self, image: Rows, dtype: type | None = None, done: Callable[[int], object] = lambda pixels: None
    ) -> Rows:
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
        if len(across) * len(down) > 1 and not self.exact:
            self._say(
                f"{self._name} sees more of an image than a tile shows it: images that are cut into tiles of {self._tile} pixels "
                f"come out a little different than in one piece, which takes more memory (tile 0). Tiles are blended over {WIDE} pixels."
            )
        bands = lambda: self._bands(image, across, down, kind, done)  # noqa: E731
        return Rows(image.height * self.scale, image.width * self.scale, image.channels, kind, bands)

    def context_for(self, image: Rows) -> int:
        """Pixels around a tile that its output depends on."""
        return self.context + (transparency.REACH if image.has_alpha else 0)

    def _cut(self, image: Rows, kind: np.dtype) -> tuple[list[Span], list[Span]]:
        """The tiles' columns and rows."""
        if max(image.height, image.width) <= self._tile or self._tile == 0:
            return spans(image.width, 0, 0), spans(image.height, 0, 0)
        fade = 0 if self.exact else min(WIDE // 2, self._tile // 4)
        context = self.context_for(image)
        of_a_row = image.width * image.channels * self.scale**2 * (kind.itemsize if fade == 0 else 4)
        low = min(self._tile, max(_LEAST, _BAND_BYTES // of_a_row))
        return tuple(
            spans(side, tile, context, self.multiple, fade)
            for side, tile in ((image.width, self._tile), (image.height, low))
        )

    def _bands(
        self, image: Rows, across: Sequence[Span], down: Sequence[Span], kind: np.dtype, done: Callable[[int], object]
    ) -> Iterator[Pixels]:
        window, carried = Window(image), None
        for rows in down:
            band = self._band(window.rows(rows.first, rows.last), rows, across, kind, done)
            if rows.before or rows.after:
                band *= rows.weights(self.scale).numpy()[:, None, None]
                if carried is not None:
                    band[: len(carried)] += carried
                finished = len(band) - 2 * rows.after * self.scale
                band, carried = band[:finished], band[finished:]
            yield band if band.dtype == kind else _as(torch.from_numpy(band), kind)

    def _band(
        self, strip: Pixels, rows: Span, across: Sequence[Span], kind: np.dtype, done: Callable[[int], object]
    ) -> Pixels:
        """The output of one row of tiles; in float32 where tiles are blended."""
        blended = bool(rows.before or rows.after or any(piece.before or piece.after for piece in across))
        kept = rows.kept(self.scale)
        shape = kept.stop - kept.start, sum(piece.stop - piece.start for piece in across) * self.scale, strip.shape[2]
        band = np.zeros(shape, np.float32) if blended else np.empty(shape, kind)
        most = 1 if self._device.type == "cpu" else max(1, _BATCH_PIXELS // (len(strip) * self._tile or 1))
        for group in batches(across, most):
            tiles = np.stack([strip[:, piece.shown] for piece in group])
            for piece, sr in zip(group, self._computed(tiles)):
                part = sr[:, kept, piece.kept(self.scale)].permute(1, 2, 0)
                if blended:
                    band[:, piece.target(self.scale)] += (
                        (part * piece.weights(self.scale).to(part)[:, None]).cpu().numpy()
                    )
                else:
                    band[:, piece.target(self.scale)] = _as(part, kind)
                done((rows.stop - rows.start) * (piece.stop - piece.start))
        return band

    @torch.inference_mode()
    def _computed(self, tiles: Pixels) -> Tensor:
        """(B, h, w, C) to (B, C, h*scale, w*scale) in [0, 1], on the device."""
        lr = torch.from_numpy(tiles).to(self._device)
        lr = (lr if lr.is_floating_point() else lr.float().div_(np.iinfo(tiles.dtype).max)).permute(0, 3, 1, 2)
        with _exact_convolutions(self._autocast is None):
            return self._in_memory(lr)

    def _in_memory(self, lr: Tensor) -> Tensor:
        """As much at once as memory suffices for."""
        pixels = lr.shape[0] * lr.shape[2] * lr.shape[3]
        if self._too_large is None or pixels < self._too_large:
            try:
                return self._finite(lr)
            except (RuntimeError, MemoryError) as error:
                if self._tile == 0 or not is_out_of_memory(error):
                    raise
                failure = error
            self._too_large = pixels
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
        else:
            failure = MemoryError(f"not enough memory on {self._device}")
        if len(lr) > 1:
            return torch.cat([self._in_memory(one) for one in lr.split(1)])
        return self._halved(lr, failure)

    def _halved(self, lr: Tensor, failure: BaseException) -> Tensor:
        """The longer side in two."""
        dim = 2 if lr.shape[2] >= lr.shape[3] else 3
        length, context = lr.shape[dim], self.context + (transparency.REACH if lr.shape[1] in (2, 4) else 0)
        half = -(-length // 2 // self.multiple) * self.multiple
        if half <= max(_LEAST, context + self.multiple):
            raise failure
        pieces = [Span(0, half, 0, min(length, half + context)),
                  Span(half, length, (half - context) // self.multiple * self.multiple, length)]  # fmt: skip
        parts = (self._in_memory(lr.narrow(dim, piece.first, piece.last - piece.first)) for piece in pieces)
        kept = (piece.kept(self.scale) for piece in pieces)
        return torch.cat([part.narrow(dim, cut.start, cut.stop - cut.start) for part, cut in zip(parts, kept)], dim)

    def _finite(self, lr: Tensor) -> Tensor:
        sr = self._run(lr, self._autocast)
        if self._autocast is not None and not sr.sum().isfinite():
            sr = self._run(lr, None)
        if not sr.sum().isfinite():
            raise ImageError(
                f"{self._name} gives values that are not finite numbers: its weights are damaged, or it cannot take this image"
            )
        return sr.clamp_(0, 1)

    def _run(self, lr: Tensor, autocast: torch.dtype | None) -> Tensor:
        self._network.autocast = autocast
        run = (lambda image: self_ensembled(self._network, image)) if self._turns else self._network
        if lr.shape[1] in (1, 3):
            return run(lr)
        color, alpha = lr[:, :-1], lr[:, -1:]
        opaque = bool((alpha == 1).all())
        sr = run(color if opaque else transparency.continued(color, alpha))
        return torch.cat([sr, transparency.upscaled(alpha, self.scale, run, self._alpha)], dim=1)


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
    pixels = (lr.float() if lr.is_floating_point() else lr).permute(1, 2, 0).contiguous().cpu().numpy()
    sr = Upscaler(model, device, tile, precision, say=say)(rows_of(pixels)).whole()
    return torch.from_numpy(sr).permute(2, 0, 1).to(lr.dtype)


def context_of(model: SRModel | Teacher) -> tuple[int, bool]:
    """The context in LR pixels that the network's tiles have, and whether tiles with it equal the whole image."""
    network = model.model if isinstance(model, Teacher) else model
    radius = receptive_field(network)
    # Windows of a flipped image begin at its other end, wherever that is: tiles cannot begin at the same places.
    turned = isinstance(model, Teacher) and model.self_ensemble and model.spec.size_multiple > 1
    return (WIDE, False) if radius is None or turned else (radius, True)


def _as(sr: Tensor, kind: np.dtype) -> Pixels:
    """Floats in [0, 1] to pixels of a type, rounded to the nearest level."""
    if kind == np.uint8:
        return to_uint8(sr).cpu().numpy()
    if kind == np.uint16:
        return sr.float().clamp(0, 1).mul(65535).round().int().cpu().numpy().astype(np.uint16)
    return sr.float().cpu().numpy()


@contextlib.contextmanager
def _exact_convolutions(wanted: bool) -> Iterator[None]:
    """Convolutions on a GPU are in TensorFloat-32 unless it is switched off."""
    if not wanted:
        yield
        return
    with torch.backends.cudnn.flags(allow_tf32=False):
        yield
