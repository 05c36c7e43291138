"""The photographs inside the scikit-image package: real data on every machine that has the requirements.

The two motorcycle pictures are a stereo pair of one scene, so both are for training; nothing of a held-out
photograph is ever trained on.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import UserError

NAME = "embedded"
TRAINING = (
    "astronaut.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "hubble_deep_field.jpg",
    "retina.jpg",
    "ihc.png",
    "camera.png",
    "brick.png",
    "grass.png",
    "gravel.png",
    "coins.png",
    "moon.png",
)
HELD_OUT = ("chelsea.png", "coffee.png", "rocket.jpg")


def training_photos() -> list[Path]:
    """The files to train on."""
    return [_photo(name) for name in TRAINING]


def held_out_photos() -> list[Path]:
    """The files to evaluate on; none of them is among :func:`training_photos`."""
    return [_photo(name) for name in HELD_OUT]


def _photo(name: str) -> Path:
    import skimage  # here, because the package is needed for nothing else while training on one's own photos

    path = Path(skimage.__file__).parent / "data" / name
    if not path.is_file():
        raise UserError(
            f"{name} is not in the installed scikit-image ({path.parent}): install scikit-image as in requirements.txt."
        )
    return path
