"""The outputs of a teacher that are stored: of whole images, in full precision."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from ..devices import is_out_of_memory
from ..models import Teacher
from .upscale import TILE, Upscaler, upscale_tensor


class WholeOutputs:
    """A teacher that takes images in one piece and in float32, whatever precision the training has.

    Args:
        teacher: the teacher.
        device: where it runs.
    """

    def __init__(self, teacher: Teacher, device: torch.device) -> None:
        self._device = device
        # The caller says once for all images that they are cut.
        make = functools.partial(Upscaler, teacher, device, precision="fp32", say=lambda text: None)
        self._upscaler = functools.cache(lambda tile: make(tile=tile))
        self._too_large: int | None = None  # pixels of the smallest image that memory did not suffice for

    def whole(self, lr: Tensor) -> Tensor:
        """Upscale uint8 (3, h, w) to uint8 (3, h*scale, w*scale) in one piece.

        Raises:
            MemoryError: memory does not suffice, for this image or for a smaller one before.
        """
        pixels = lr.shape[-2] * lr.shape[-1]
        if self._too_large is None or pixels < self._too_large:
            try:
                return self._upscale(lr, tile=0)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            self._too_large = pixels
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
        raise MemoryError(f"{lr.shape[-1]}x{lr.shape[-2]} pixels in one piece")

    def in_tiles(self) -> tuple[str, Callable[[Tensor], Tensor]]:
        """How an image that is too large is cut, and the function that does it."""
        return f"in tiles of {TILE} with a context of {self._upscaler(TILE).context}", self._upscale

    def _upscale(self, lr: Tensor, tile: int = TILE) -> Tensor:
        return upscale_tensor(self._upscaler(tile), lr)
