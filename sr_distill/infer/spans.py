"""How a side of an image is cut into tiles."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Span:
    """A piece of one side of an image, in pixels of the input.

    Attributes:
        start, stop: the piece's own pixels; those of all pieces are the side.
        first, last: what the network is shown: its own pixels and their context.
        before, after: pixels beyond its own over which its output is blended with its neighbour's.
    """

    start: int
    stop: int
    first: int
    last: int
    before: int = 0
    after: int = 0

    @property
    def shown(self) -> slice:
        """What the network is shown, in the image."""
        return slice(self.first, self.last)

    def kept(self, scale: int) -> slice:
        """What is used of the network's output, in it."""
        return slice((self.start - self.before - self.first) * scale, (self.stop + self.after - self.first) * scale)

    def target(self, scale: int) -> slice:
        """Where that lies in the output image."""
        return slice((self.start - self.before) * scale, (self.stop + self.after) * scale)

    def weights(self, scale: int) -> Tensor:
        """What each used pixel of the output counts: 1, but for straight ramps over what is blended; neighbours' add up to 1."""
        weights = torch.ones((self.stop + self.after - self.start + self.before) * scale)
        rise, fall = 2 * self.before * scale, 2 * self.after * scale
        weights[:rise] *= (torch.arange(rise) + 0.5) / max(rise, 1)
        weights[len(weights) - fall :] *= 1 - (torch.arange(fall) + 0.5) / max(fall, 1)
        return weights


def spans(length: int, tile: int, context: int, multiple: int = 1, fade: int = 0) -> list[Span]:
    """Cut ``length`` pixels into pieces of at most ``tile``, all about as long.

    What a piece and its context on both sides would hold is not cut.

    Args:
        tile: 0: never cut.
        context: pixels that a piece is shown beside its own.
        multiple: what is shown begins at a multiple of this.
        fade: pixels beyond its own over which a piece is blended with its neighbour.
    """
    if tile == 0 or length <= tile + 2 * context:
        return [Span(0, length, 0, length)]
    count = -(-length // tile)
    sides = [length // count + (index < length % count) for index in range(count)]
    pieces = []
    for start, stop in itertools.pairwise([0, *itertools.accumulate(sides)]):
        first = max(0, start - context)
        pieces.append(Span(
            start, stop, first - first % multiple, min(length, stop + context),
            fade if start > 0 else 0, fade if stop < length else 0,
        ))  # fmt: skip
    return pieces


def batches(pieces: Sequence[Span], most: int) -> Iterator[list[Span]]:
    """Neighbours that are shown equally many pixels, ``most`` at a time."""
    for _, equal in itertools.groupby(pieces, lambda piece: piece.last - piece.first):
        group = list(equal)
        yield from (group[first : first + most] for first in range(0, len(group), most))
