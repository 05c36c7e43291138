"""Checkpoints: written atomically, the last few kept."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError
from ..files import atomic_path


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int, spare: int | None = None) -> Path:
    """Write ``folder/step_<step>.pt`` and delete all but the last ``keep`` checkpoints and that of the step ``spare``.

    Those of later steps go, too: they are of a run from whose middle this one went on, and would be taken for its own.

    Raises:
        UserError: the file cannot be written; earlier checkpoints are untouched.
    """
    path = folder / f"step_{step:08d}.pt"
    content = io.BytesIO()
    torch.save(
        state, content
    )  # to memory first: a full disk is then an ordinary error of writing, not one of torch's format
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.getbuffer())
    known = all_checkpoints(folder)
    own = [one for one in known if step_of(one) <= step]
    kept = {*own[-keep:], *(one for one in own if step_of(one) == spare)}
    for old in known:
        if old not in kept:
            old.unlink(missing_ok=True)
    return path


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest step, or None."""
    found = all_checkpoints(folder)
    return found[-1] if found else None


def step_of(path: Path) -> int:
    """The step after which a checkpoint was saved."""
    return int(path.stem.removeprefix("step_"))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU.

    Raises:
        UserError: it is damaged.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"{path} cannot be read ({' '.join(str(error).split())[:200]}): delete it to resume from the one before."
        ) from error


def all_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder by rising step."""
    return sorted(path for path in folder.glob("step_*.pt") if re.fullmatch(r"step_\d{8,}\.pt", path.name))
