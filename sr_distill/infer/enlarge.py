"""From a picture to a larger one: passes of networks, then the size that was asked for."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace

import numpy as np

from ..errors import UserError
from .picture import Frame, Picture
from .resize import resized
from .rows import Pixels, Rows, rows_of
from .scale import MOST, Scale, passes
from .upscale import Upscaler

Done = Callable[[float], object]
"""Is told the pixels of the result that were finished."""


class Upscalers(Mapping[int, Upscaler]):
    """Networks of one family by their scale, each opened once, when it is first needed, whichever thread needs it."""

    def __init__(self, scales: Collection[int], open_one: Callable[[int], Upscaler]) -> None:
        self._scales, self._open = sorted(scales), functools.cache(open_one)
        self._opening = threading.Lock()

    def __getitem__(self, scale: int) -> Upscaler:
        """The network of a scale."""
        if scale not in self._scales:
            raise KeyError(scale)
        with self._opening:
            return self._open(scale)

    def __iter__(self) -> Iterator[int]:
        """The scales."""
        return iter(self._scales)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._scales)


class Enlarger:
    """Upscales pictures of any kind to any size.

    Args:
        upscalers: by scale, of one family.
        scale: what is wanted.
        seamless: the image is a texture that goes on at its other end: so does its upscaled form.
        say: is told how a scale that no network has is made.

    Raises:
        UserError: ``seamless`` with a size that no network makes exactly.
    """

    def __init__(
        self,
        upscalers: Mapping[int, Upscaler],
        scale: Scale,
        seamless: bool = False,
        say: Callable[[str], object] = lambda text: None,
    ) -> None:
        self._upscalers, self._scale, self._seamless, self._say = upscalers, scale, seamless, say

    def key_for(self, height: int, width: int) -> str:
        """A hash of the networks that an image of this size is shown to, and of how they are run."""
        keys = [f"x{scale} {self._upscalers[scale].key}" for scale in self._passes(height, width)]
        return " ".join([*keys, *["seamless"] * self._seamless])

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the result of an image."""
        return self._scale.size_of(height, width)

    def __call__(self, picture: Picture, done: Done = lambda pixels: None) -> Picture:
        """The larger picture, whose rows are computed when they are taken."""
        frames = tuple(Frame(self.rows(frame.rows, done=done), frame.duration) for frame in picture.frames)
        return replace(picture, frames=frames)

    def rows(self, image: Rows, dtype: type | None = None, done: Done = lambda pixels: None) -> Rows:
        """The larger image; ``dtype``: uint8, uint16 or float32, None: as the image."""
        height, width = self._scale.size_of(image.height, image.width)
        kind = np.dtype(dtype or image.dtype).type
        chain = self._passes(image.height, image.width)
        whole = int(np.prod(chain, dtype=int))
        exact = (height, width) == (image.height * whole, image.width * whole)
        self._tell(chain, exact)
        if self._seamless and not (exact and chain):
            raise UserError(
                f"--seamless needs a scale that networks make without resizing: {', '.join(map(str, self._upscalers))}."
            )
        margin = self._margin(chain, image) if self._seamless else 0
        large = _wrapped(image, margin) if margin else image
        for index, factor in enumerate(chain):
            last = index == len(chain) - 1
            share = height * width / (large.height * large.width)
            told = (lambda pixels, share=share: done(pixels * share)) if last else (lambda pixels: done(0.0))
            large = self._upscalers[factor](large, kind if last and exact else np.float32, told)
        if margin:
            large = _cut(large, margin * whole)
        return large if exact else resized(large, height, width, kind)

    def _passes(self, height: int, width: int) -> list[int]:
        """Scales of the networks that an image of this size goes through."""
        large = self._scale.size_of(height, width)
        factor = max(large[0] / height, large[1] / width)
        if factor > MOST:
            raise UserError(
                f"{self._scale.label} is {factor:.0f} times the size of {width}x{height}; {MOST} times is the most."
            )
        return passes(self._upscalers, factor)

    def _tell(self, chain: list[int], exact: bool) -> None:
        if not chain:
            self._say(f"{self._scale.label} makes it no larger: no network is asked.")
        elif len(chain) > 1 or not exact:
            steps = ", then ".join(f"x{factor}" for factor in chain)
            target = self._scale.label
            self._say(
                f"{target} is made by {steps}"
                + ("." if exact else f", then shrunk to {target} by antialiased bicubic.")
            )

    def _margin(self, chain: list[int], image: Rows) -> int:
        """Pixels that the networks see beyond the border, together."""
        reach, factor = 0.0, 1
        for scale in chain:
            upscaler = self._upscalers[scale]
            reach += (upscaler.context_for(image) + upscaler.multiple) / factor
            factor *= scale
        needed = int(np.ceil(reach))
        multiple = self._upscalers[chain[0]].multiple
        return -(-needed // multiple) * multiple


def _wrapped(image: Rows, margin: int) -> Rows:
    """The image with what is at its other end around it."""
    return rows_of(np.pad(image.whole(), ((margin, margin), (margin, margin), (0, 0)), mode="wrap"))


def _cut(image: Rows, margin: int) -> Rows:
    """Without ``margin`` pixels at each end."""
    height, width = image.height - 2 * margin, image.width - 2 * margin

    def bands() -> Iterator[Pixels]:
        row = -margin
        for band in image.bands():
            part = band[max(0, -row) : max(0, min(len(band), height - row)), margin : margin + width]
            row += len(band)
            if len(part):
                yield part

    return Rows(height, width, image.channels, image.dtype, bands)
