"""What every command does: turn errors into sentences and exit codes."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from ..devices import is_out_of_memory, leave_processes
from ..errors import UserError
from ..export import FORMATS, is_exported, open_in
from ..models import SRModel
from ..options import ArchitectureOptions, parse_architecture
from ..plugins import load_plugins

T = TypeVar("T")


def run_command(main: Callable[[Sequence[str] | None], int], arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    0: done; 1: done with problems; 2: could not be done, for a reason that the user can see to, which is printed as a sentence; 3: an
    error of the program, printed with its traceback; 130: interrupted.
    """
    for stream in (sys.stdout, sys.stderr):  # names of files need not be text that a terminal can show
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message="torch.meshgrid")  # some published networks
    logging.getLogger("torch.distributed.elastic.multiprocessing.redirects").setLevel(logging.ERROR)
    try:
        with _ended_by_sigterm():
            return main(arguments)
    except KeyboardInterrupt:
        print("interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        sentence = _sentence(error)
        if sentence is not None:
            print(f"error: {sentence}", file=sys.stderr)
            return 2
        traceback.print_exc()
        print("This is an error in sr_distill, or in a plugin: please report it with the lines above.", file=sys.stderr)
        return 3
    finally:
        leave_processes()


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the program as an exception does, so that what is half written is removed."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    try:
        before = signal.signal(signal.SIGTERM, end)
    except ValueError:  # outside of the main thread signals cannot be handled
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _sentence(error: Exception) -> str | None:
    """What the user can put right, None for an error of the program."""
    if isinstance(error, UserError):
        return str(error)
    if is_out_of_memory(error):
        said = " ".join(str(error).split())[:200] or type(error).__name__
        return f"not enough memory ({said}): try smaller images, tiles, crops or batches, or another --device."
    if isinstance(error, OSError):
        file = f"{error.filename}: " if error.filename is not None else ""
        return f"{file}{error.strerror or error}."
    return None


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The arguments, with the plugins of --plugins loaded: before anything is opened that may need them.

    Raises:
        UserError: a plugin cannot be loaded.
    """
    parser.add_argument(
        "--plugins",
        nargs="+",
        default=[],
        metavar="NAME",
        help="Python files or modules with networks or metrics of your own (my_models.py, my_package.sr)",
    )
    args = parser.parse_args(arguments)
    load_plugins(args.plugins)
    if getattr(args, "architecture", None) is not None:  # which may be a plugin's
        args.architecture = parse_architecture(args.architecture)
    return args


def add_device(parser: argparse.ArgumentParser) -> None:
    """The --device option."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")


def add_timing(parser: argparse.ArgumentParser, runtimes: Collection[str]) -> None:
    """The options of how latency is measured, --runtime and --runs."""
    parser.add_argument("--runtime", choices=runtimes, default="torch", help="by what it is timed (default: torch); exported models "
                        "by their own")  # fmt: skip
    parser.add_argument("--runs", type=at_least_one, default=10, help="passes that are timed (default: 10)")


def add_runtime(parser: argparse.ArgumentParser) -> None:
    """The --runtime option of commands that run models."""
    runtimes = [name for name, kind in FORMATS.items() if kind.runs_here]
    parser.add_argument(
        "--runtime",
        choices=["torch", *runtimes],
        help="what computes the models: PyTorch, or another runtime on the processor, for which they are exported first (default: torch; "
        "exported models by their own)",
    )


def at_least_one(text: str) -> int:
    """A whole number above 0, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


def those_that_open(items: Sequence[str], open_one: Callable[[str], T], problems: list[str]) -> dict[str, T]:
    """Open each item; what cannot be opened becomes a sentence in ``problems``.

    Raises:
        UserError: none can be opened.
    """
    opened: dict[str, T] = {}
    for item in items:
        try:
            opened[item] = open_one(item)
        except UserError as error:
            problems.append(str(error))
    if items and not opened:
        raise UserError(" ".join(problems))
    return opened


def add_architecture(parser: argparse.ArgumentParser) -> None:
    """The --architecture option of commands that open checkpoints."""
    parser.add_argument(
        "--architecture",
        metavar="A",
        help="the network of a checkpoint that is not recognised: its name, or with options '{type: edsr, num_feat: 64}'",
    )


def load_models(
    names: Sequence[str],
    scale: int | None,
    runtime: str | None = None,
    architecture: ArchitectureOptions | None = None,
) -> list[SRModel]:
    """Load models; each is renamed to what the table calls it: LABEL of ``LABEL=M``, or a short form of M.

    Raises:
        UserError: a model cannot be loaded or is for another scale.
    """
    return [
        open_in(split_label(name)[1], scale, runtime, architecture).renamed(label)
        for name, label in zip(names, labels_of(names))
    ]


def labels_of(names: Sequence[str]) -> list[str]:
    """What a table calls each model: its label, or a short form of its name where that is clear."""
    given = [split_label(name) for name in names]
    labels = [label or _short_name(name) for label, name in given]
    return [name if labels.count(label) > 1 else label for label, (_, name) in zip(labels, given)]


def split_label(name: str) -> tuple[str, str]:
    """LABEL and M of ``LABEL=M``; no label where there is none, or where a file has that name."""
    label, _, model = name.rpartition("=") if "=" in name and not Path(name).exists() else ("", "", name)
    return label, model


def _short_name(name: str) -> str:
    """The file's name without its ending; the run's name for experiments/<run>[/student.safetensors]."""
    path = Path(name)
    if path.is_dir():
        return path.resolve().name
    if path.exists() and is_exported(path):
        return path.stem
    if path.suffix not in (".safetensors", ".pth", ".pt"):
        return name
    return path.parent.name if path.stem == "student" and path.parent.name else path.stem
