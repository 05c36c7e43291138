"""How a network is run on a few tiles: in which precision, within what memory, with which transparency."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..devices import is_out_of_memory
from ..errors import ImageError
from ..models import Deployed, SRModel, self_ensembled
from . import alpha as transparency
from .rows import Pixels, to_float
from .spans import Span

Precision = Literal["auto", "fp32", "bf16", "fp16"]

_LEAST = 32  # side of a tile below which cutting it further saves no memory


class Runner:
    """A network on its device.

    If memory does not suffice for a tile, it is cut in two, with context, and *that tile* is computed again.

    Args:
        model: the network, which is left as it is.
        turns: whether it runs on 8 flips and turns.
        device: where it goes to.
        precision: see :class:`sr_distill.infer.Upscaler`.
        alpha: how transparency is upscaled.
        cuts: whether a tile may be cut.
        at_once: calls of several threads that compute at the same time; the others wait.
    """

    def __init__(
        self,
        model: SRModel,
        turns: bool,
        device: torch.device,
        precision: Precision,
        alpha: transparency.Alpha,
        cuts: bool,
        at_once: int,
    ) -> None:
        self.scale, self._multiple, self._name = model.spec.scale, model.spec.size_multiple, model.spec.name
        self._network = Deployed(model).to(device, memory_format=torch.channels_last)
        self._turns, self._alpha, self._device, self._cuts = turns, alpha, device, cuts
        self._autocast = {"auto": torch.float16 if device.type == "cuda" else None, "bf16": torch.bfloat16,
                          "fp16": torch.float16, "fp32": None}[precision]  # fmt: skip
        self._too_large: int | None = None  # pixels of the smallest tile that memory did not suffice for
        self._turn, self._threads = threading.Semaphore(at_once), torch.get_num_threads() if at_once == 1 else None

    @torch.inference_mode()
    def __call__(self, tiles: Pixels, context: Callable[[], int]) -> Tensor:
        """Tiles of one size (B, h, w, C) to (B, C, h*scale, w*scale), not clipped, on the device.

        Args:
            context: tells the pixels around a place that it depends on, if a tile must be cut.
        """
        with self._turn, _exact_convolutions(self._device.type == "cuda" and self._autocast is None):
            # The setting is each thread's own.
            if self._threads is not None and torch.get_num_threads() != self._threads:
                torch.set_num_threads(self._threads)
            known = tiles if tiles.dtype == np.uint8 else to_float(tiles)  # few devices have uint16
            lr = torch.from_numpy(known).to(self._device)
            lr = lr if lr.is_floating_point() else lr.float().div_(255)
            return self._in_memory(lr.permute(0, 3, 1, 2), context)

    def _in_memory(self, lr: Tensor, context: Callable[[], int]) -> Tensor:
        """As much at once as memory suffices for."""
        pixels = lr.shape[0] * lr.shape[2] * lr.shape[3]
        if self._too_large is None or pixels < self._too_large:
            try:
                return self._finite(lr)
            except (RuntimeError, MemoryError) as error:
                if not self._cuts or not is_out_of_memory(error):
                    raise
                failure = error
            self._too_large = pixels
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
        else:
            failure = MemoryError(f"not enough memory on {self._device}")
        if len(lr) > 1:
            return torch.cat([self._in_memory(one, context) for one in lr.split(1)])
        return self._halved(lr, context, failure)

    def _halved(self, lr: Tensor, context: Callable[[], int], failure: BaseException) -> Tensor:
        """The longer side in two."""
        dim = 2 if lr.shape[2] >= lr.shape[3] else 3
        length, around = lr.shape[dim], context()
        half = -(-length // 2 // self._multiple) * self._multiple
        if half <= max(_LEAST, around + self._multiple):
            raise failure
        pieces = [Span(0, half, 0, min(length, half + around)),
                  Span(half, length, (half - around) // self._multiple * self._multiple, length)]  # fmt: skip
        parts = (self._in_memory(lr.narrow(dim, piece.first, piece.last - piece.first), context) for piece in pieces)
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
        return sr

    def _run(self, lr: Tensor, autocast: torch.dtype | None) -> Tensor:
        self._network.autocast = autocast
        run = (lambda image: self_ensembled(self._network, image)) if self._turns else self._network
        if lr.shape[1] in (1, 3):
            return run(lr)
        color, alpha = lr[:, :-1], lr[:, -1:]
        opaque = bool((alpha == 1).all())
        sr = run(color if opaque else transparency.continued(color, alpha))
        return torch.cat([sr, transparency.upscaled(alpha, self.scale, run, self._alpha)], dim=1)


@contextlib.contextmanager
def _exact_convolutions(wanted: bool) -> Iterator[None]:
    """Convolutions on a GPU are in TensorFloat-32 unless it is switched off."""
    if not wanted:
        yield
        return
    with torch.backends.cudnn.flags(allow_tf32=False):
        yield
