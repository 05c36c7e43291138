"""Where files are looked for, and how they are written: to a temporary name first, then renamed."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import UserError

DATA_ROOT_VARIABLE = "SR_DISTILL_DATA"


def data_root() -> Path | None:
    """The folder named by ``SR_DISTILL_DATA`` (with ``benchmarks/ train/ weights/ backbones/``), or None."""
    value = os.environ.get(DATA_ROOT_VARIABLE)
    return Path(value).expanduser() if value else None


def find(path: str | Path, what: str) -> Path:
    """Return ``path`` as it stands or, where that does not exist, below ``SR_DISTILL_DATA``.

    Raises:
        UserError: it exists in neither place; the message names both.
    """
    path = Path(path).expanduser()
    root = data_root()
    places = [path] if path.is_absolute() or root is None else [path, root / path]
    for place in places:
        if place.exists():
            return place
    hint = "" if root is not None or path.is_absolute() else f" ({DATA_ROOT_VARIABLE} is not set)"
    raise UserError(f"{what} not found: {path}; looked for {', '.join(str(p) for p in places)}{hint}.")


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary name beside ``path`` to write to; on success it is renamed to ``path``.

    If the block fails, the temporary file is removed and what stood at ``path`` before is untouched.

    Raises:
        UserError: the file cannot be written (no space, no permission).
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        _keep_usual_permissions(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UserError(f"cannot write {path}: {error.strerror or error}.") from error
        raise


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` to ``path`` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def _keep_usual_permissions(path: Path) -> None:
    """Mkstemp makes files that only their owner can read; give them what an ordinary ``open`` gives."""
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(path, 0o666 & ~mask)
