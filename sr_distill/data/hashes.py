"""Hashes of files, remembered: a file that did not change is not read again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import write_text

_SETTLED = 2_000_000_000  # ns


class FileHashes:
    """SHA-256 of files, by their absolute path, size and time of change.

    Args:
        path: the file in which they are remembered; one that is missing or damaged is as an empty one.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = _read(path)
        self._new: dict[str, list[Any]] = {}

    def of(self, file: Path) -> str:
        """The hash of the content of ``file``, in hexadecimal digits.

        Raises:
            UserError: it cannot be read.
        """
        try:
            name, state = os.path.abspath(file), file.stat()
            stamp = [state.st_size, state.st_mtime_ns]
            known = self._known.get(name)
            if isinstance(known, list) and known[:2] == stamp:
                return str(known[-1])
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
        except FileNotFoundError as error:
            raise UserError(f"{file}: there is no such file.") from error
        except OSError as error:
            raise UserError(f"{file}: cannot be read ({error.strerror or error}).") from error
        if time.time_ns() - state.st_mtime_ns > _SETTLED:  # a younger file may change again within the same tick
            self._new[name] = [*stamp, digest]
        return digest

    def save(self) -> None:
        """Remember what was hashed, beside what other processes remembered meanwhile; where that fails, it costs time alone."""
        if self._new:
            with contextlib.suppress(UserError):
                write_text(self._path, json.dumps(_read(self._path) | self._new) + "\n")


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return tree if isinstance(tree, dict) else {}
