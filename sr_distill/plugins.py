"""Python files and modules of the user's own, whose networks, losses and metrics are registered when they are imported."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import sys
import traceback
import types
from collections.abc import Iterator, Sequence
from pathlib import Path

from .errors import UserError

_MARK = "__sr_distill_plugin__"


def load_plugins(names: Sequence[str], beside: Path | None = None) -> None:
    """Import plugins; one that was imported before stays as it is.

    Args:
        names: each a file (``my_models.py``), or a module that Python finds, also in the working folder (``my_package.sr``).
        beside: a folder in which files are looked for, too.

    Raises:
        UserError: a plugin is not there, or importing it fails; with the reason and the line.
    """
    for name in names:
        module = _from_file(name, beside) if name.endswith(".py") else _from_package(name)
        setattr(module, _MARK, Path(name).name if name.endswith(".py") else name)


def plugin_of(entry: type) -> str | None:
    """The plugin that a class comes from, as it is to be named; None for one of this package's own."""
    parts = entry.__module__.split(".")
    modules = (sys.modules.get(".".join(parts[:count])) for count in range(len(parts), 0, -1))
    return next((getattr(module, _MARK) for module in modules if hasattr(module, _MARK)), None)


def _from_file(name: str, beside: Path | None) -> types.ModuleType:
    given = Path(name).expanduser()
    places = [given] if beside is None or given.is_absolute() else [given, beside / given]
    path = next((place.resolve() for place in places if place.is_file()), None)
    if path is None:
        raise UserError(f"plugin not found: {name}; looked for {', '.join(str(place) for place in places)}.")
    # A name of its own: files of one name in two folders are two plugins, and pickle finds their classes.
    own_name = f"sr_distill_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if own_name in sys.modules:
        return sys.modules[own_name]
    spec = importlib.util.spec_from_file_location(own_name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[own_name] = module
    try:
        with _explained(name, str(path)):
            spec.loader.exec_module(module)
    except UserError:
        del sys.modules[own_name]
        raise
    return module


def _from_package(name: str) -> types.ModuleType:
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        with _explained(name, name.replace(".", "/")):
            return importlib.import_module(name)
    finally:
        sys.path.remove(folder)


@contextlib.contextmanager
def _explained(name: str, where: str) -> Iterator[None]:
    """Turn what goes wrong into a sentence, with the last line that ran of a file whose path has ``where`` in it."""
    try:
        yield
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            raise UserError(
                f"plugin not found: there is no module '{error.name}', neither installed nor in {Path.cwd()}; "
                "a plugin that is a file is named with its .py."
            ) from error
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if where in frame.filename]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        at = "" if line is None else f", line {line}"
        raise UserError(f"plugin {name}{at}: {type(error).__name__}: {' '.join(str(error).split())}") from error
