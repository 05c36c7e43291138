"""How large an image is wanted, and which passes of which networks make it so."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Collection
from dataclasses import dataclass

from ..errors import UserError

MOST = 64
"""Times that a side may become longer."""

_NEARLY = 1e-9  # factors are ratios of sizes


@dataclass(frozen=True)
class Scale:
    """How large the result is: a factor, or a size in pixels of which one side may follow from the other.

    Attributes:
        factor: of both sides; None: a size is given.
        width, height: in pixels; None: as the other side and the image's form say.
    """

    factor: float | None = None
    width: int | None = None
    height: int | None = None

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the result of an image, at least 1."""
        if self.factor is not None:
            return max(1, round(height * self.factor)), max(1, round(width * self.factor))
        wide = self.width if self.width is not None else max(1, round(width * self.height / height))
        return (self.height if self.height is not None else max(1, round(height * self.width / width))), wide

    @property
    def label(self) -> str:
        """What the names of results say of it: ``x2``, ``x1.5``, ``1920x1080``."""
        if self.factor is not None:
            return f"x{self.factor:g}"
        return f"{self.width or ''}x{self.height or ''}"


def parse_scale(text: str) -> Scale:
    """Read ``2``, ``1.5``, ``1920x1080``, ``1920x`` (the height follows) or ``x1080`` (the width follows).

    Raises:
        UserError: it is none of them; says what there is.
    """
    size = re.fullmatch(r"(\d*)[xX](\d*)", text.strip())
    if size and any(size.groups()):
        width, height = (int(side) if side else None for side in size.groups())
        if 0 not in (width, height):
            return Scale(width=width, height=height)
    else:
        try:
            factor = float(text)
        except ValueError:
            factor = 0.0
        if 0 < factor <= MOST:
            return Scale(factor)
    raise UserError(
        f"--scale {text}: give a factor up to {MOST} (2, 1.5), or a size in pixels (1920x1080, 1920x or x1080)."
    )


def passes(available: Collection[int], factor: float) -> list[int]:
    """Scales of the networks that run one after the other, so that the image becomes at least ``factor`` times as large.

    As few as can be, of these the ones that make it the least too large, the small ones first, where pixels are few. None for a factor
    up to 1.
    """
    count = 0
    while max(available) ** count < factor - _NEARLY:
        count += 1
    chains = itertools.combinations_with_replacement(sorted(available), count)
    return list(min((chain for chain in chains if math.prod(chain) >= factor - _NEARLY), key=math.prod))
