"""Which files are upscaled, and where their results go."""

from __future__ import annotations

import functools
import itertools
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data.images import no_images
from ..errors import UserError
from .picture import SUFFIXES, size_in_header
from .write import FORMATS, format_of

VIDEO_SUFFIXES = frozenset({".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v", ".ts", ".mpg", ".mpeg", ".wmv", ".flv"})
CONTAINERS = (".mkv", ".mp4", ".mov", ".m4v", ".avi", ".flv")
"""Those that videos can be written in."""
_KEPT = CONTAINERS[:4]  # from a source; the others hold less than it may have

STANDARD = Path("-")
"""Standard input, or standard output."""


@dataclass(frozen=True)
class Job:
    """One file to upscale.

    Attributes:
        source: the file; ``-``: standard input.
        target: where the result goes; ``-``: standard output.
        kind: the format of the result; for a video the suffix of its container.
    """

    source: Path
    target: Path
    kind: str

    @functools.cached_property
    def size(self) -> tuple[int, int] | None:
        """Height and width of an image as its header has them; None where there is none, or it cannot be read."""
        return None if self.source == STANDARD else size_in_header(self.source)

    @property
    def is_video(self) -> bool:
        """Whether it is a video, by its name."""
        return self.source.suffix.lower() in VIDEO_SUFFIXES


def find_inputs(paths: Sequence[Path], recursive: bool = False) -> tuple[dict[Path, Path], list[str]]:
    """The files that paths name: themselves, or the images in folders.

    Args:
        paths: files, folders, or ``-``.
        recursive: with the folders below them.

    Returns:
        Each file with its name in the output folder, in which folders keep their subfolders; and sentences about files that are left out.

    Raises:
        UserError: a path does not exist or is no regular file, or a folder holds no image.
    """
    found: dict[Path, Path] = {}
    notes: list[str] = []
    for path in paths:
        if path == STANDARD:
            found[path] = Path("stdin.png")
        elif path.is_dir():
            images, others = _searched(path, recursive)
            if not images:
                raise UserError(
                    " ".join([f"{path}: no image found in this folder{' or below it' * recursive}.", *others])
                )
            notes += others
            found |= {file: file.relative_to(path) for file in images}
        elif path.is_file():
            found[path] = Path(path.name)
        elif os.path.lexists(path):
            raise UserError(f"{path} is neither a file nor a folder (a broken link, a pipe or a device).")
        else:
            raise UserError(f"{path}: there is no such file or folder.")
    return found, notes


def jobs_for(
    names: dict[Path, Path], output: Path, label: str, kind: str | None, overwrite: bool = False
) -> tuple[list[Job], list[str]]:
    """Where the result of each file goes: ``output/NAME<label>.png``, or ``output`` itself where that is a file's name and there is one.

    Files that would have the same name keep their extension in it, or get a number, so that none overwrites another's. What an earlier
    run in the same folder made (``NAME<label>.png`` beside ``NAME``) is not upscaled again, and what is there already is left.

    Args:
        names: files and their names in the output folder, of :func:`find_inputs`.
        output: a folder, the name of a file, or ``-``.
        label: what is put behind the name: ``_x4``.
        kind: a format of :data:`FORMATS`; ``same``: that of the source; None: what ``output`` ends in, else png.
        overwrite: make again what is there.

    Raises:
        UserError: ``output`` is one file and there are several, or of another kind, or there already; or a result is an image itself.
    """
    if output == STANDARD:
        if _only(names, output).suffix.lower() in VIDEO_SUFFIXES:
            raise UserError(f"-o -: a video is written to a file: name one ({', '.join(CONTAINERS)}), or a folder.")
        return [Job(_only(names, output), output, "png" if kind in (None, "same") else kind)], []
    if output.is_file() or (not output.is_dir() and _ends_as_a_file(output)):
        return [_to_file(names, output, kind, overwrite)], []
    jobs = [
        Job(file, output / target, how)
        for (file, how), target in zip(_kinds(names, kind), _targets(names, label, kind))
    ]
    made = {job.target.resolve(): job for job in jobs}
    todo = []
    for job in jobs:
        maker = None if job.source == STANDARD else made.get(job.source.resolve())
        if maker is job:
            raise UserError(f"{job.target}: the result would take the place of the image: another -o, or a --suffix.")
        if maker is None:
            todo.append(job)
    notes = (
        []
        if len(todo) == len(jobs)
        else [f"{len(jobs) - len(todo)} image(s) were made by an earlier run, and are left as they are."]
    )
    there = [job for job in todo if job.target.exists() and not overwrite]
    if there:
        notes.append(
            f"{len(there)} of {len(todo)} results are there already, and are left as they are (--overwrite makes them anew)."
        )
    return [job for job in todo if job not in there], notes


def _searched(folder: Path, recursive: bool) -> tuple[list[Path], list[str]]:
    """The images in a folder, and sentences about what else is there."""
    images, others, deeper, problems = [], [], 0, []
    for place, folders, names in os.walk(folder, onerror=problems.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(place, name)
            if name.startswith("."):
                continue
            is_image = path.suffix.lower() in SUFFIXES and path.is_file()
            if Path(place) != folder and not recursive:
                deeper += is_image
            else:
                (images if is_image else others).append(path)
    notes = [f"{error.filename}: cannot be searched ({error.strerror})." for error in problems]
    notes += no_images(folder, others, "a video is named by itself")
    if deeper:
        notes.append(f"{folder}: {deeper} image(s) in folders below it are left out (--recursive takes them).")
    return sorted(images), notes


def _kinds(names: dict[Path, Path], kind: str | None) -> Iterator[tuple[Path, str]]:
    """Each file with the format of its result."""
    for file in names:
        suffix = file.suffix.lower()
        if suffix in VIDEO_SUFFIXES:
            yield file, suffix if suffix in _KEPT else ".mkv"
        else:
            yield file, (format_of(suffix) or "png") if kind == "same" else kind or "png"


def _targets(names: dict[Path, Path], label: str, kind: str | None) -> Iterator[Path]:
    """Names of results, each once."""
    endings = [how if how.startswith(".") else FORMATS[how].suffix for _, how in _kinds(names, kind)]
    plain = [name.with_name(f"{name.stem}{label}{ending}") for name, ending in zip(names.values(), endings)]
    claims, taken = Counter(plain), set()
    for name, ending, target in zip(names.values(), endings, plain):
        stem = f"{name.stem}_{name.suffix[1:]}" if claims[target] > 1 else name.stem
        numbers = itertools.chain([""], (f"_{number}" for number in itertools.count(2)))
        paths = (name.with_name(f"{stem}{label}{number}{ending}") for number in numbers)
        chosen = next(path for path in paths if path not in taken)
        taken.add(chosen)
        yield chosen


def _ends_as_a_file(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES | VIDEO_SUFFIXES


def _to_file(names: dict[Path, Path], output: Path, kind: str | None, overwrite: bool) -> Job:
    """The one job whose result is ``output``."""
    file, suffix = _only(names, output), output.suffix.lower()
    if (file.suffix.lower() in VIDEO_SUFFIXES) != (suffix in VIDEO_SUFFIXES):
        raise UserError(f"-o {output}: the result of {file} is {'a video' if file.suffix.lower() in VIDEO_SUFFIXES else 'an image'}: "
                        "name a file of that kind, or a folder.")  # fmt: skip
    if suffix in VIDEO_SUFFIXES and suffix not in CONTAINERS:
        raise UserError(f"-o {output}: videos are written as {', '.join(CONTAINERS)}; name one of these, or a folder.")
    how = suffix if suffix in VIDEO_SUFFIXES else format_of(suffix)
    if how is None:
        raise UserError(
            f"-o {output}: results are {', '.join(f'.{each}' for each in FORMATS)}; name one of these, or a folder."
        )
    if kind not in (None, "same", how) and suffix not in VIDEO_SUFFIXES:
        raise UserError(f"-o {output} is no {kind}, which --format asks for.")
    if file != STANDARD and file.resolve() == output.resolve():
        raise UserError(f"-o {output} is the image itself: name another file, or a folder.")
    if output.exists() and not overwrite:
        raise UserError(f"-o {output} is there already: --overwrite replaces it.")
    return Job(file, output, how)


def _only(names: dict[Path, Path], output: Path) -> Path:
    if len(names) > 1:
        raise UserError(f"-o {output} is one file, and there are {len(names)} images: name a folder.")
    return next(iter(names))
