"""Where files are looked for, and how they are written: to a temporary name first, then renamed."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import UserError

try:
    import fcntl
except ImportError:  # not on Windows, where abandoned files stay
    fcntl = None

_PREFIX, _YOUNG = ".writing-", 60.0
_LONGEST_NAME = 200  # bytes; file systems take 255

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


def examples() -> Path:
    """The folder that has ``options/`` (with ``schema.json``) and ``datasets/``: of the checkout, or as installed from a wheel.

    Raises:
        UserError: neither is there.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "examples", package.parent):
        if (folder / "options" / "schema.json").is_file():
            return folder
    raise UserError(f"{package} was installed without its example options: install the wheel of sr-distill again.")


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
        _remove_abandoned(path.parent)
        handle, name = tempfile.mkstemp(prefix=_PREFIX, suffix=_ending(path), dir=path.parent)
        temporary = Path(name)
        with _held(handle):
            yield temporary
            _keep_usual_permissions(temporary)
            os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UserError(f"cannot write {path}: {error.strerror or error}.") from error
        raise


@contextlib.contextmanager
def replace_folder(folder: Path, mark: str) -> Iterator[Path]:
    """Give an empty folder beside ``folder`` to fill; on success it takes its place. If the block fails, what stood there is untouched.

    Args:
        mark: a file that is in all folders of this kind; another folder that is not empty is somebody else's and is left alone.

    Raises:
        UserError: there is somebody else's folder, or a file, or the folder cannot be written.
    """
    if folder.exists() and not (folder / mark).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            f"{folder} is there and has no {mark}, so it was not made by this: remove it, or name another place."
        )
    work: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder.parent)
        work = Path(tempfile.mkdtemp(prefix=_PREFIX, suffix=_ending(folder), dir=folder.parent))
        with _held(os.open(work, os.O_RDONLY)):
            yield work
            work.chmod(0o777 & ~_mask())
            former = folder.with_name(f"{work.name}.former")
            if folder.exists():
                folder.rename(former)
            work.rename(folder)
            shutil.rmtree(former, ignore_errors=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror or error}).") from error
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)


def is_temporary(path: Path) -> bool:
    """Whether this is a name that is written to before the right one is given."""
    return path.name.startswith(_PREFIX)


def _ending(path: Path) -> str:
    """Of a temporary name: the whole name, for who finds it, or its suffix, which writers look at, where the two would be too long."""
    return f"-{path.name}" if len(os.fsencode(path.name)) <= _LONGEST_NAME else path.suffix


@contextlib.contextmanager
def _held(handle: int) -> Iterator[None]:
    """Keep a lock on what is being written, so that others see that its writer lives."""
    try:
        if fcntl is not None:
            with contextlib.suppress(OSError):  # some network file systems have no locks
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


@functools.cache  # once for each folder: a folder of results may be large
def _remove_abandoned(folder: Path) -> None:
    """Remove what a writer that was killed left half done: nobody holds it, and it is not of this minute."""
    if fcntl is None:
        return
    for path in folder.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime < _YOUNG:
                continue
            handle = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            finally:
                os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` to ``path`` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


_ONE_AT_A_TIME = threading.Lock()  # two at once would leave the process the mask of neither


def _keep_usual_permissions(path: Path) -> None:
    """Mkstemp makes files that only their owner can read; give them what an ordinary ``open`` gives."""
    os.chmod(path, 0o666 & ~_mask())


def _mask() -> int:
    with _ONE_AT_A_TIME:
        mask = os.umask(0)
        os.umask(mask)
        return mask
