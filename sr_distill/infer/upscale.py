"""Upscale an image of any size, in tiles where it is large."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from ..models import SRModel, Teacher, upscale_float, upscale_uint8
from ..models.receptive_field import receptive_field

Tile = tuple[tuple[slice, slice], tuple[slice, slice]]
"""Of its rows and of its columns: the tile's own, and with its context."""

TILE = 256
WIDE = 64
"""Context of the tiles of a network of which no context makes them equal to the whole image."""


@torch.no_grad()
def upscale(
    model: SRModel | Teacher,
    lr: Tensor,
    device: torch.device,
    tile: int = TILE,
    say: Callable[[str], object] = warnings.warn,
    progress: Callable[[Sequence[Tile]], Iterable[Tile]] = iter,
) -> Tensor:
    """Upscale uint8 RGB (3, H, W), or floats in [0, 1], to the same dtype (3, H*scale, W*scale), on the CPU.

    An image larger than ``tile`` is cut into tiles of that side, with as much context around each as the network sees; only a
    tile's own pixels are kept, which are those of the image in one piece. Only one tile is on the device at a time.

    Args:
        tile: side of a tile in LR pixels, without its context; 0: the whole image at once.
        say: is told, for each image that is cut, if the network sees too far for that; then the tiles have ``WIDE`` pixels
            of context, and the image may differ from that in one piece.
        progress: wraps the loop over the tiles, for a progress bar.
    """
    model = model.to(device)
    scale = model.spec.scale
    height, width = lr.shape[-2:]
    context = 0
    if tile and max(height, width) > tile:
        context, exact = context_of(model)
        if not exact and max(height, width) > tile + 2 * context:
            say(
                f"{model.spec.name} sees more of an image than a tile shows it: images that are cut into tiles of {tile} pixels "
                "come out a little different than in one piece, which takes more memory (tile 0)."
            )
    run = upscale_uint8 if lr.dtype == torch.uint8 else upscale_float
    sr = torch.empty(3, height * scale, width * scale, dtype=lr.dtype)
    all_rows, all_cols = (list(_spans(side, tile, context, model.spec.size_multiple)) for side in (height, width))
    for (rows, outer_rows), (cols, outer_cols) in progress(list(itertools.product(all_rows, all_cols))):
        out = run(model, lr[None, :, outer_rows, outer_cols], device)[0]
        inner_rows = _scaled(rows, scale, outer_rows.start)
        inner_cols = _scaled(cols, scale, outer_cols.start)
        sr[:, _scaled(rows, scale), _scaled(cols, scale)] = out[:, inner_rows, inner_cols].cpu()
    return sr


def context_of(model: SRModel | Teacher) -> tuple[int, bool]:
    """The context in LR pixels that the network's tiles have, and whether tiles with it equal the whole image."""
    network = model.model if isinstance(model, Teacher) else model
    radius = receptive_field(network)
    # Windows of a flipped image begin at its other end, wherever that is: tiles cannot begin at the same places.
    turned = isinstance(model, Teacher) and model.self_ensemble and model.spec.size_multiple > 1
    return (WIDE, False) if radius is None or turned else (radius, True)


def _spans(length: int, tile: int, context: int, multiple: int) -> Iterator[tuple[slice, slice]]:
    """Slices that cover ``length``, each with the wider slice that gives it context and begins at a multiple of ``multiple``."""
    if tile == 0 or length <= tile + 2 * context:
        yield slice(0, length), slice(0, length)
        return
    for start in range(0, length, tile):
        stop, first = min(start + tile, length), max(0, start - context)
        yield slice(start, stop), slice(first - first % multiple, min(length, stop + context))


def _scaled(span: slice, scale: int, origin: int = 0) -> slice:
    return slice((span.start - origin) * scale, (span.stop - origin) * scale)
