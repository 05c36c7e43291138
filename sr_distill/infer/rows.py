"""Images that come in bands of rows, from top to bottom, so that no more of them than is needed lies in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

Pixels = np.ndarray
"""(rows, width, channels): uint8 or uint16, or float32 in [0, 1]; gray, gray and alpha, RGB, or RGB and alpha."""

BAND = 64
"""Rows of a band, where nothing else says how many."""


@dataclass(frozen=True)
class Rows:
    """An image as its rows come.

    Attributes:
        height: rows.
        width: pixels of a row.
        channels: 1 gray, 2 gray and alpha, 3 RGB, 4 RGB and alpha.
        dtype: uint8, uint16, or float32 in [0, 1].
        bands: gives all rows once, as (rows, width, channels).
    """

    height: int
    width: int
    channels: int
    dtype: np.dtype
    bands: Callable[[], Iterator[Pixels]]

    @property
    def has_alpha(self) -> bool:
        """Whether the last channel is alpha."""
        return self.channels in (2, 4)

    def whole(self) -> Pixels:
        """The image in one piece."""
        pixels = np.empty((self.height, self.width, self.channels), self.dtype)
        row = 0
        for band in self.bands():
            pixels[row : row + len(band)] = band
            row += len(band)
        return pixels


def rows_of(pixels: Pixels) -> Rows:
    """An image that is in memory."""
    return Rows(*pixels.shape, pixels.dtype, lambda: (pixels[row : row + BAND] for row in range(0, len(pixels), BAND)))


def converted(image: Rows, dtype: type) -> Rows:
    """The same image in another type."""
    if image.dtype == dtype:
        return image
    bands = lambda: (in_type(band, dtype) for band in image.bands())  # noqa: E731
    return Rows(image.height, image.width, image.channels, np.dtype(dtype), bands)


def in_type(pixels: Pixels, dtype: np.dtype | type) -> Pixels:
    """The same pixels as uint8, uint16 or float32 in [0, 1]: clipped, and rounded to the nearest level."""
    if pixels.dtype == dtype:
        return pixels
    if dtype == np.float32:
        return to_float(pixels)
    top = np.iinfo(dtype).max
    return np.rint(to_float(pixels) * np.float32(top)).clip(0, top).astype(dtype)


def to_float(pixels: Pixels) -> Pixels:
    """Any type to float32 in [0, 1]."""
    if pixels.dtype == np.float32:
        return pixels
    return pixels.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max)


class Window:
    """Rows of an image that are asked for further and further down; those above are forgotten."""

    def __init__(self, image: Rows) -> None:
        self._bands = image.bands()
        self._held: list[Pixels] = []
        self._first = self._end = 0

    def rows(self, first: int, stop: int) -> Pixels:
        """Rows ``first`` to ``stop``; ``first`` may not be less than in an earlier call."""
        while self._end < stop:
            band = next(self._bands)
            self._held.append(band)
            self._end += len(band)
        while self._first + len(self._held[0]) <= first:
            self._first += len(self._held.pop(0))
        cut = slice(first - self._first, stop - self._first)
        if len(self._held) > 1:
            if len(self._held[0]) > cut.start > 0:  # what is left of a band would keep all of it in memory
                self._held[0], self._first = self._held[0][cut.start :].copy(), first
                cut = slice(0, stop - first)
            self._held = [np.concatenate(self._held)]
        return self._held[0][cut]
