"""Trained weights that ship with the package, each with a card beside it that says how it was made."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from ..errors import UserError, did_you_mean
from ..files import find
from ..models import SRModel, load_model
from ..options import ArchitectureOptions

_FOLDER = Path(str(files(__package__)))

ZOO: dict[str, Path] = {path.stem: path for path in sorted(_FOLDER.glob("*.safetensors"))}
"""Models by name; the card of each is NAME.md in the same folder."""

_NAME = re.compile(r"(.+)_x(\d)(.*)")  # family, scale, what it is trained for


def open_model(name: str, scale: int | None = None, architecture: ArchitectureOptions | None = None) -> SRModel:
    """Load the model that a user names: of the zoo, one of our files, a training run, or a published checkpoint.

    Args:
        name: a name of the zoo, or a path (also below SR_DISTILL_DATA) of a file or of the folder of a training run.
        scale: the scale that is wanted, None: whatever the file says.
        architecture: the network, for a checkpoint that does not tell.

    Raises:
        UserError: there is no such model, it cannot be read, or it is for another scale.
    """
    return load_model(find_file(name), scale, architecture)


def find_file(name: str) -> Path:
    """The file of a model that a user names; arguments and errors as in :func:`open_model`."""
    if name in ZOO:
        return ZOO[name]
    try:
        path = find(name, "model")
    except UserError as error:
        near = did_you_mean(name, ZOO, cutoff=0.7)
        raise UserError(f"{error}{near} Models of the zoo: {', '.join(ZOO) or 'none'}.") from None
    of_run = (path / file for file in ("student.safetensors", "last.safetensors"))
    return next((file for file in of_run if file.is_file()), path)


def family(name: str) -> dict[int, str]:
    """Models of the zoo that differ from this one in their scale alone, by scale; empty for what is not in the zoo."""
    found = _NAME.fullmatch(name)
    if name not in ZOO or found is None:
        return {}
    kin = {other: match for other in ZOO if (match := _NAME.fullmatch(other)) is not None}
    return {int(match[2]): other for other, match in kin.items() if (match[1], match[3]) == (found[1], found[3])}


def licence_of(name: str) -> str | None:
    """What the card of a model of the zoo says of licences; None where there is no such model, or it says nothing."""
    card = ZOO[name].with_suffix(".md").read_text(encoding="utf-8") if name in ZOO else ""
    return next((line for line in card.splitlines() if line.startswith("Licence")), None)
