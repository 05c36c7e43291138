"""One process trains in a folder at a time."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil

from ..errors import UserError

LOCK = "running.json"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """While this lasts, nobody else can lock ``folder``; the lock of a process of this machine that is gone does not count.

    Raises:
        UserError: somebody else has it; says who, and what to do where they are gone on another machine.
    """
    lock = folder / LOCK
    me = {"host": socket.gethostname(), "pid": os.getpid(), "since": psutil.Process().create_time()}
    if _is_stale(lock):
        lock.unlink(missing_ok=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with lock.open("x", encoding="utf-8") as file:
            json.dump(me, file)
    except FileExistsError:
        raise UserError(_who_has(lock)) from None
    except OSError as error:
        raise UserError(f"cannot write {lock}: {error.strerror or error}.") from error
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


def _is_stale(lock: Path) -> bool:
    """Whether it is of a process of this machine that ended; what another machine does cannot be seen from here."""
    owner = _owner(lock)
    if owner is None or owner["host"] != socket.gethostname():
        return False
    try:
        return psutil.Process(owner["pid"]).create_time() != owner["since"]  # else another has its number now
    except psutil.NoSuchProcess:
        return True


def _who_has(lock: Path) -> str:
    owner = _owner(lock)
    who = "another process" if owner is None else f"process {owner['pid']} on {owner['host']}"
    return (
        f"{lock.parent}: {who} trains there. Wait for its end or stop it; if it is not running any more, delete {lock}."
    )


def _owner(lock: Path) -> dict | None:
    try:
        owner = json.loads(lock.read_text(encoding="utf-8"))
        return owner if {"host", "pid", "since"} <= owner.keys() else None
    except (OSError, ValueError, AttributeError):
        return None
