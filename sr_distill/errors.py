"""The exceptions that are meant for a person, and the hint that goes with a mistyped name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can put right.

    The message names the file, key or value, what was expected, and what to do. The command line prints it
    without a traceback; a program that uses the package as a library can catch it.
    """


class LossError(UserError, ValueError):
    """A loss cannot be computed from what it was given: shapes that differ, too few samples."""


class ImageError(UserError, ValueError):
    """An image cannot be upscaled or measured; the message does not say which: who knows its name puts it before."""


_OTHER_NAMES = {
    "l2": "mse",
    "mae": "l1",
    "vgg": "perceptual",
    "psnr": "psnr_y",
    "ssim": "ssim_y",
    "lr": "learning_rate",
    "iters": "total_steps",
    "steps": "total_steps",
    "set": "sets",
}
"""What the field also calls things."""


def did_you_mean(given: str, allowed: Iterable[str], cutoff: float = 0.5) -> str:
    """`` Did you mean 'x'?`` with the allowed name nearest to ``given``, or nothing where none is near."""
    names = list(allowed)
    other = _OTHER_NAMES.get(given.lower())
    close = [other] if other in names else difflib.get_close_matches(given, names, n=1, cutoff=cutoff)
    return f" Did you mean '{close[0]}'?" if close else ""
