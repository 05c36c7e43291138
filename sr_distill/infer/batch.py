"""Many files: some are read and written while networks work on others."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from ..devices import is_out_of_memory
from ..errors import UserError
from ..files import atomic_path
from .enlarge import Done, Enlarger
from .files import STANDARD, Job
from .picture import MOST_MEGAPIXELS, Picture, open_picture
from .rows import Pixels, Rows
from .upscale import workers
from .write import check, write_picture

_AHEAD_MEGAPIXELS = 0.5  # of an image of which a band is computed while another is written
_MEGAPIXELS = 30  # of the images that are in memory at the same time, but for one that is larger alone


@dataclass(frozen=True)
class Outcome:
    """What became of a file.

    Attributes:
        job: the file.
        size: height and width of the result; None if there is none.
        pixels: of the result, of all its frames.
        notes: what could not be kept, in sentences.
        error: why there is no result.
    """

    job: Job
    size: tuple[int, int] | None = None
    pixels: int = 0
    notes: tuple[str, ...] = ()
    error: str | None = None


def upscale_files(
    jobs: Sequence[Job],
    enlarger: Enlarger,
    threads: int = 1,
    most_megapixels: float = MOST_MEGAPIXELS,
    progress: Callable[[Job, int], Done] = lambda job, pixels: lambda done: None,
) -> Iterator[Outcome]:
    """Upscale images and write the results, each under a temporary name first; gives what became of each, in their order.

    A file that cannot be read, upscaled or written is an outcome with an error; the others go on. One more file than ``threads`` is under way
    at a time, so that one is read or written while networks work on the others; large ones are alone.

    Args:
        threads: of the network.
        progress: is called for each file with the pixels of its result; what it returns is told how many were finished.
    """
    each, at_once = (1, min(threads + 1, len(jobs))) if len(jobs) > 1 else (threads, 1)
    batch, pool = _Batch(enlarger, most_megapixels, progress, each), workers(at_once, each)
    waiting = deque(pool.submit(batch.run, job) for job in jobs)
    try:
        while waiting:
            yield waiting.popleft().result()
    finally:
        batch.stop()
        pool.shutdown(cancel_futures=True)


class _Stopped(Exception):
    """The batch was given up."""


class _Batch:
    """What the files of a batch share."""

    def __init__(
        self, enlarger: Enlarger, most_megapixels: float, progress: Callable[[Job, int], Done], threads: int
    ) -> None:
        self._enlarger, self._most_megapixels, self._progress = enlarger, most_megapixels, progress
        self._threads = threads
        self._room = _Room(_MEGAPIXELS)
        self._given_up = threading.Event()

    def stop(self) -> None:
        """Let every file that is under way end at its next tile, with nothing left of it."""
        self._given_up.set()

    def run(self, job: Job) -> Outcome:
        """One file from its reading to its writing."""
        try:
            height, width = job.size or (0, 0)  # one that cannot be read is an error soon enough
            with self._room.for_megapixels(height * width / 1e6):
                content = sys.stdin.buffer.read() if job.source == STANDARD else job.source
                source = open_picture(content, self._most_megapixels)
                size = self._enlarger.size_of(source.rows.height, source.rows.width)
                notes = (*source.notes, *check(source, size, job.kind))
                pixels = size[0] * size[1] * len(source.frames)
                large = self._enlarger(source, self._until_given_up(self._progress(job, pixels)))
                if source.rows.height * source.rows.width < _AHEAD_MEGAPIXELS * 1e6:
                    self._write(job, large)
                else:
                    with workers(1, self._threads) as computing:
                        frames = tuple(replace(frame, rows=_ahead(frame.rows, computing)) for frame in large.frames)
                        self._write(job, replace(large, frames=frames))
                return Outcome(job, size, pixels, notes)
        except (UserError, RuntimeError, MemoryError, OSError, ValueError) as error:
            return failed(job, error)

    def _until_given_up(self, done: Done) -> Done:
        def told(pixels: float) -> None:
            if self._given_up.is_set():
                raise _Stopped
            done(pixels)

        return told

    def _write(self, job: Job, picture: Picture) -> None:
        if job.target == STANDARD:
            write_picture(sys.stdout.buffer, picture, job.kind)
            sys.stdout.buffer.flush()
            return
        with atomic_path(job.target) as temporary, temporary.open("wb") as file:
            write_picture(file, picture, job.kind)


class _Room:
    """Lets as many images into memory as fit; one that is larger than that is alone."""

    def __init__(self, megapixels: float) -> None:
        self._most, self._taken, self._changed = megapixels, 0.0, threading.Condition()

    @contextlib.contextmanager
    def for_megapixels(self, megapixels: float) -> Iterator[None]:
        wanted = min(megapixels, self._most)
        with self._changed:
            self._changed.wait_for(lambda: self._taken + wanted <= self._most)
            self._taken += wanted
        try:
            yield
        finally:
            with self._changed:
                self._taken -= wanted
                self._changed.notify_all()


def _ahead(rows: Rows, computing: ThreadPoolExecutor) -> Rows:
    """The same image, its next band computed while this one is written."""

    def bands() -> Iterator[Pixels]:
        source = rows.bands()
        following = computing.submit(next, source, None)
        while (band := following.result()) is not None:
            following = computing.submit(next, source, None)
            yield band

    return replace(rows, bands=bands)


def failed(job: Job, error: Exception) -> Outcome:
    """The outcome of a file that an error ended, with a sentence that names it.

    Raises:
        Exception: the error itself, where it is one of the program.
    """
    name = "standard input" if job.source == STANDARD else str(job.source)
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    if isinstance(error, UserError):
        said = str(error)
        if name not in said and str(job.target) not in said:
            said = f"{name}: {said}" + ("" if said.endswith((".", ")")) else ".")
    elif is_out_of_memory(error):
        said = f"{name}: not enough memory; try a smaller --tile, or a --format that is written in bands (png, tiff)."
    elif isinstance(error, (OSError, ValueError)):
        said = f"{job.target}: cannot be written ({reason})."
    else:
        raise error
    return Outcome(job, error=said)
