"""What is known of the common benchmark sets: ``known_sets/*.yml`` beside this file."""

from __future__ import annotations

import functools
import hashlib
from importlib.resources import files
from pathlib import Path

import yaml
from pydantic import Field

from ..data.images import read_rgb
from ..errors import UserError
from ..options import validate
from ..options.base import Options
from .protocol import SetResult
from .sets import BenchmarkSet

FOLDER = Path(str(files(__package__))) / "known_sets"


class KnownSet(Options):
    """A benchmark set as the papers use it."""

    name: str = Field(description="Name, as in tables.")
    images: int = Field(ge=1, description="How many images it has.")
    where: str = Field(description="Who made it and where people get it.")
    bicubic_psnr_y: dict[int, float] = Field({}, description="PSNR-Y of bicubic upscaling by scale.")
    tolerance: float = Field(0.3, gt=0, description="How far a right set may be from that, in dB.")
    pixels: dict[str, str] = Field({}, description="Checksum of each HR image, see checksum().")


@functools.lru_cache(maxsize=1)
def known_sets() -> dict[str, KnownSet]:
    """The sets of ``known_sets/*.yml`` by name.

    Raises:
        UserError: a file is wrong.
    """
    found = [validate(KnownSet, _read(path), str(path)) for path in sorted(FOLDER.glob("*.yml"))]
    return {known.name: known for known in found}


def _read(path: Path) -> object:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split())}).") from error


def checksum(path: Path) -> str:
    """The first 16 digits of the SHA-256 of an image's size and RGB pixels, however the file is encoded.

    Raises:
        UserError: the image cannot be read.
    """
    pixels = read_rgb(path)
    return hashlib.sha256(f"{pixels.shape[1]}x{pixels.shape[0]} ".encode() + pixels.tobytes()).hexdigest()[:16]


def remarks_on(benchmark: BenchmarkSet, scale: int, bicubic: SetResult) -> list[str]:
    """Sentences about a set that is not what its name says, judged by its number of images and its bicubic row."""
    known = known_sets().get(benchmark.name)
    if known is None:
        return []
    remarks = []
    if len(benchmark.images) != known.images:
        remarks.append(
            f"{known.name} has {known.images} images in the papers, here {len(benchmark.images)}: "
            "its means cannot be compared with theirs."
        )
    expected, got = known.bicubic_psnr_y.get(scale), bicubic.mean("psnr_y")
    if expected is not None and got is not None and abs(got - expected) > known.tolerance:
        remarks.append(
            f"{known.name} at x{scale}: bicubic has {got:.2f} dB here and {expected:.2f} dB in the papers. The "
            "images have another size, or LR was made by another kernel (OpenCV's bicubic and torch's without antialias differ so): no "
            "row of this set can be compared with a paper. scripts/prepare_datasets.py checks it."
        )
    return remarks
