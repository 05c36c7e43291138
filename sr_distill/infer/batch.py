"""Many files, one after the other: the next is read, and the last one written, while the network works on one."""

from __future__ import annotations

import queue
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import BinaryIO

from ..devices import is_out_of_memory
from ..errors import UserError
from ..files import atomic_path
from .enlarge import Done, Enlarger
from .files import STANDARD, Job
from .picture import MOST_MEGAPIXELS, Picture, open_picture, size_in_header
from .rows import Pixels, Rows
from .write import check, write_picture

_EARLY_MEGAPIXELS = 30  # of an image that is decoded while another is still worked on
_PATIENCE = 0.2  # seconds


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
    most_megapixels: float = MOST_MEGAPIXELS,
    progress: Callable[[Job, int], Done] = lambda job, pixels: lambda done: None,
    read_standard: Callable[[], bytes] = lambda: sys.stdin.buffer.read(),
    standard_output: Callable[[], BinaryIO] = lambda: sys.stdout.buffer,
) -> Iterator[Outcome]:
    """Upscale images and write the results, each under a temporary name first; gives what became of each, in their order.

    A file that cannot be read, upscaled or written is an outcome with an error; the others go on.

    Args:
        progress: is called for each file with the pixels of its result; what it returns is told how many were finished.
    """
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        results: deque[tuple[Outcome, Future | None]] = deque()
        try:
            for job, picture in _read_ahead(jobs, reader, most_megapixels, read_standard):
                results.append(_begun(job, picture, enlarger, progress, writer, standard_output))
                while results and (results[0][1] is None or results[0][1].done() or len(results) > 1):
                    yield _finished(*results.popleft())
            while results:
                yield _finished(*results.popleft())
        finally:
            reader.shutdown(wait=False, cancel_futures=True)


def _read_ahead(
    jobs: Sequence[Job], reader: ThreadPoolExecutor, most_megapixels: float, read_standard: Callable[[], bytes]
) -> Iterator[tuple[Job, Future[Picture]]]:
    """Each job with its picture; the next is decoded meanwhile, if it is not a large one."""

    def read(job: Job) -> Picture:
        return open_picture(read_standard() if job.source == STANDARD else job.source, most_megapixels)

    early: Future[Picture] | None = None
    for index, job in enumerate(jobs):
        current = early or reader.submit(read, job)
        following = jobs[index + 1] if index + 1 < len(jobs) else None
        early = reader.submit(read, following) if following is not None and _is_small(following) else None
        yield job, current


def _is_small(job: Job) -> bool:
    """Whether an image is decoded before its turn, by what its header says; one that cannot be read is an error soon enough."""
    if job.source == STANDARD:
        return False
    height, width = size_in_header(job.source) or (0, 0)
    return height * width <= _EARLY_MEGAPIXELS * 1e6


def _begun(
    job: Job,
    picture: Future[Picture],
    enlarger: Enlarger,
    progress: Callable[[Job, int], Done],
    writer: ThreadPoolExecutor,
    standard_output: Callable[[], BinaryIO],
) -> tuple[Outcome, Future | None]:
    """Compute a picture while it is written; gives what will have become of it when the writing is done."""
    try:
        source = picture.result()
        height, width = enlarger.size_of(source.rows.height, source.rows.width)
        notes = (*source.notes, *check(source, (height, width), job.kind))
        pixels = height * width * len(source.frames)
        large = enlarger(source, progress(job, pixels))
    except (UserError, RuntimeError, MemoryError) as error:
        return Outcome(job, error=_sentence(job, error)), None
    feeds = [_Feed(frame.rows) for frame in large.frames]
    handed = replace(large, frames=tuple(replace(f, rows=feed.rows) for f, feed in zip(large.frames, feeds)))
    writing = writer.submit(_write, job, handed, standard_output)
    outcome = Outcome(job, (height, width), pixels, notes)
    try:
        for feed in feeds:
            feed.pump(writing)
    except BaseException as error:
        for feed in feeds:
            feed.fail(error)
        if not isinstance(error, (UserError, RuntimeError, MemoryError)):
            raise
        return Outcome(job, error=_sentence(job, error)), None
    return outcome, writing


def _finished(outcome: Outcome, writing: Future | None) -> Outcome:
    """The outcome, once it is written."""
    if writing is None:
        return outcome
    try:
        writing.result()
    except Exception as error:
        return Outcome(outcome.job, error=_sentence(outcome.job, error))
    return outcome


def _write(job: Job, picture: Picture, standard_output: Callable[[], BinaryIO]) -> None:
    if job.target == STANDARD:
        write_picture(standard_output(), picture, job.kind)
        standard_output().flush()
        return
    with atomic_path(job.target) as temporary, temporary.open("wb") as file:
        write_picture(file, picture, job.kind)


def _sentence(job: Job, error: BaseException) -> str:
    name = "standard input" if job.source == STANDARD else str(job.source)
    if isinstance(error, UserError):
        said = str(error)
        return (
            said
            if name in said or str(job.target) in said
            else f"{name}: {said}{'' if said.endswith(('.', ')')) else '.'}"
        )
    if is_out_of_memory(error):
        return f"{name}: not enough memory; try a smaller --tile, or a --format that is written in bands (png, tiff)."
    if isinstance(error, (OSError, ValueError)):
        return f"{job.target}: cannot be written ({' '.join(str(error).split())[:200]})."
    raise error


class _Stopped(Exception):
    """The other side of a feed has failed."""


class _Feed:
    """Bands that one thread computes and another writes, few at a time."""

    def __init__(self, rows: Rows) -> None:
        self._source = rows
        self._queue: queue.Queue[Pixels | BaseException | None] = queue.Queue(maxsize=1)
        self.rows = Rows(rows.height, rows.width, rows.channels, rows.dtype, self._taken)

    def _taken(self) -> Iterator[Pixels]:
        while (band := self._queue.get()) is not None:
            if isinstance(band, BaseException):
                raise _Stopped from band
            yield band

    def pump(self, writing: Future) -> None:
        """Compute all bands; ends early when the writer has failed."""
        for band in self._source.bands():
            if not self._put(band, writing):
                return
        self._put(None, writing)

    def _put(self, item: Pixels | None, writing: Future) -> bool:
        while not writing.done():
            try:
                self._queue.put(item, timeout=_PATIENCE)
                return True
            except queue.Full:
                continue
        return False

    def fail(self, error: BaseException) -> None:
        """Make the writer give up."""
        while True:
            try:
                self._queue.put_nowait(error)
                return
            except queue.Full:
                try:
                    self._queue.get_nowait()
                except queue.Empty:
                    continue
