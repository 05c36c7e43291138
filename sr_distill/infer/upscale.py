"""Upscale an image of any size, in tiles where it is large."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..models import SRModel, Teacher, upscale_uint8

TILE, OVERLAP = 256, 32


@torch.no_grad()
def upscale(
    model: SRModel | Teacher, lr: Tensor, device: torch.device, tile: int = TILE, overlap: int = OVERLAP
) -> Tensor:
    """Upscale uint8 RGB (3, H, W) to uint8 (3, H*scale, W*scale).

    An image larger than ``tile`` is cut into tiles of that side with ``overlap`` pixels of context around each; only a tile's
    own pixels are kept. Only one tile is on the device at a time. A convolutional network that sees no further than ``overlap``
    gives the same image as in one piece; one with global attention may differ slightly from tile to tile.

    Args:
        tile: side of a tile in LR pixels, without its context; 0: the whole image at once.
        overlap: context in LR pixels.
    """
    model = model.to(device)
    scale = model.spec.scale
    height, width = lr.shape[-2:]
    sr = torch.empty(3, height * scale, width * scale, dtype=torch.uint8)
    for rows, outer_rows in _spans(height, tile, overlap):
        for cols, outer_cols in _spans(width, tile, overlap):
            out = upscale_uint8(model, lr[None, :, outer_rows, outer_cols], device)[0]
            inner_rows = _scaled(rows, scale, outer_rows.start)
            inner_cols = _scaled(cols, scale, outer_cols.start)
            sr[:, _scaled(rows, scale), _scaled(cols, scale)] = out[:, inner_rows, inner_cols].cpu()
    return sr


def _spans(length: int, tile: int, overlap: int) -> Iterator[tuple[slice, slice]]:
    """Slices that cover ``length``, each with the wider slice that gives it context."""
    if tile == 0 or length <= tile + 2 * overlap:
        yield slice(0, length), slice(0, length)
        return
    for start in range(0, length, tile):
        stop = min(start + tile, length)
        yield slice(start, stop), slice(max(0, start - overlap), min(length, stop + overlap))


def _scaled(span: slice, scale: int, origin: int = 0) -> slice:
    return slice((span.start - origin) * scale, (span.stop - origin) * scale)
