"""What every format of exported models promises, and the table of them."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ..console import silence
from ..errors import UserError
from .graph import IOS, ExportGraph, Io, Signature
from .lowering import Lowering

Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

Runner = Callable[[np.ndarray], np.ndarray]
"""One pass: an array as :class:`Signature` describes it to the output."""


class Format(ABC):
    """One runtime's files.

    Attributes:
        name: as the user types it.
        runtime: what it is called.
        suffix: of the main file.
        packages: what must be installed, by the name under which it is imported.
        precisions, ios: what there is.
        dynamic: whether images of any size can go in.
        lowering: how operators are written for it.
        rounds_maps: whether int8 is that of maps, too, and not of weights alone.
        runs_here: whether the runtime runs on this kind of machine, so that an export is proved by running it.
    """

    name: ClassVar[str]
    runtime: ClassVar[str]
    suffix: ClassVar[str]
    packages: ClassVar[Mapping[str, str]]
    precisions: ClassVar[tuple[Precision, ...]] = PRECISIONS
    ios: ClassVar[tuple[Io, ...]] = IOS
    dynamic: ClassVar[bool] = True
    lowering: ClassVar[Lowering] = Lowering()
    rounds_maps: ClassVar[bool] = True
    runs_here: ClassVar[bool] = True

    def convert(
        self, graph: ExportGraph, signature: Signature, precision: Precision, photos: Sequence[Tensor], path: Path
    ) -> None:
        """Write the model.

        Args:
            photos: for int8, real inputs as ``signature`` has them, of which it learns the ranges of values; else none.
            path: of the main file; others lie beside it under the same stem.

        Raises:
            UserError: the runtime's converter does not take the network.
        """
        with self.errors(f"{self.runtime} does not take {graph.spec.name}"), torch.no_grad(), silence():
            self._convert(graph, signature, precision, photos, path)

    def open(self, path: Path, threads: int) -> Runner:
        """Load the file in its own runtime; where that does not run here, check its structure.

        Raises:
            UserError: the runtime cannot load it.
        """
        with self.errors(f"{path}: {self.runtime} cannot open it"), silence():
            return self._open(path, threads)

    @abstractmethod
    def _convert(
        self, graph: ExportGraph, signature: Signature, precision: Precision, photos: Sequence[Tensor], path: Path
    ) -> None:
        """What :meth:`convert` does; any exception becomes its error, and nothing that is printed is seen."""

    @abstractmethod
    def _open(self, path: Path, threads: int) -> Runner:
        """What :meth:`open` does, likewise."""

    @staticmethod
    @contextmanager
    def errors(what: str) -> Iterator[None]:
        """Converters and runtimes have exceptions of their own, many for operators that they do not have."""
        try:
            yield
        except (UserError, MemoryError, OSError):
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"{what} ({type(error).__name__}: {reason}).") from error

    def check_installed(self) -> None:
        """Raise where a package is missing.

        Raises:
            UserError: it names the packages and the command that installs them.
        """
        missing = [pip for module, pip in self.packages.items() if importlib.util.find_spec(module) is None]
        if missing:
            raise UserError(
                f"{self.runtime} needs {', '.join(missing)}: pip install {' '.join(missing)} "
                "(or, for all formats, -r requirements-export.txt, the extra sr-distill[export])."
            )

    def check_runs(self) -> None:
        """Raise where models of this format cannot be run.

        Raises:
            UserError: a package is missing, or the runtime does not run on this kind of machine.
        """
        self.check_installed()
        if not self.runs_here:
            raise UserError(f"{self.runtime} does not run on this system.")


FORMATS: dict[str, Format] = {}
"""Every format by name."""


def register_format(kind: type[Format]) -> type[Format]:
    """Class decorator: add a format to ``FORMATS``."""
    FORMATS[kind.name] = kind()
    return kind
