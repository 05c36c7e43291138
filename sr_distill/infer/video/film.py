"""Videos: frame by frame, in constant memory, with everything else in the file kept; what is done stays done."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ...console import progress_bar
from ...errors import UserError
from ...files import atomic_path
from ..batch import Outcome, failed
from ..enlarge import Enlarger
from ..files import Job
from ..resize import resized
from ..rows import Pixels, rows_of
from .colors import FULL, LIMITED, Look, look_of, to_frame, to_pixels
from .parts import Parts, fingerprint, join, open_film, reason_of

SEGMENT = 120
"""Frames that are written together: what an interruption can lose."""

_CRF = "16"  # of libx264: hardly to be told from the frames themselves
_AHEAD = 4  # frames that are decoded before their turn


def upscale_video(job: Job, enlarger: Enlarger, say: Callable[[str], object], quiet: bool = False) -> Outcome:
    """Upscale a video: H.264 of constant quality with the timing of the source; sound, subtitles, chapters and tags are copied.

    Frames are turned as the file says; matrix and range of the colours, and 10 bits, stay. ``SEGMENT`` frames at a time are written to
    ``.NAME.parts`` beside the result; a run that was interrupted goes on after the last of them, if source, model and options are the same.

    Args:
        say: is told what could not be kept.
        quiet: without a progress bar.
    """
    try:
        av = _pyav()
        try:
            source = open_film(av, job.source)
        except (av.error.FFmpegError, OSError) as error:
            raise UserError(f"{job.source}: cannot be read as a video ({reason_of(error)}).") from error
        with source:
            stream = next((s for s in source.streams.video if not _is_cover(s)), None)
            if stream is None:
                raise UserError(f"{job.source}: there is no video in it.")
            stream.thread_type = "AUTO"
            with contextlib.closing(_Frames(av, source, stream)) as frames:  # before the file that they are read from
                return _upscaled(av, stream, frames, job, enlarger, say, quiet)
    except Exception as error:
        of_pyav = type(error).__module__.startswith("av")
        return failed(job, UserError(f"{job.source}: {reason_of(error)}.") if of_pyav else error)


def _upscaled(
    av: Any, stream: Any, frames: _Frames, job: Job, enlarger: Enlarger, say: Callable[[str], object], quiet: bool
) -> Outcome:
    first = frames.peek()
    if first is None:
        raise UserError(f"{job.source}: none of its frames can be decoded.")
    look = look_of(first)
    if first.interlaced_frame:
        say(f"{job.source}: is interlaced; deinterlaced first it comes out better.")
    height, width = (first.height, first.width) if look.turns % 2 == 0 else (first.width, first.height)
    size = enlarger.size_of(height, width)
    parts = Parts(
        job,
        {
            "source": fingerprint(job.source),
            "networks": enlarger.key_for(height, width),
            "size": size,
            "segment": SEGMENT,
        },
    )
    if parts.done:
        say(f"{job.source}: goes on after {parts.done * SEGMENT} frames that an earlier run finished.")
    total = stream.frames or (
        int(stream.duration * stream.time_base * stream.average_rate)
        if stream.duration and stream.average_rate
        else None
    )
    count = 0
    with (
        parts.only_if_some(),
        progress_bar(total=total, unit="frame", desc=job.source.name, disable=True if quiet else None) as bar,
    ):
        bar.update(skipped := frames.skip(parts.done * SEGMENT))
        while frames.peek() is not None:
            with atomic_path(parts.next()) as temporary:
                count += _segment(av, frames, temporary, look, enlarger, size, stream, bar.update)
            parts.done += 1
    if frames.damaged:
        say(f"{job.source}: {frames.damaged} damaged packet(s) could not be decoded; their frames are missing.")
    if frames.changed:
        say(f"{job.source}: {frames.changed} frame(s) of another size were brought to that of the first.")
    with atomic_path(job.target) as temporary:
        for text in join(av, job.source, stream.index, parts.files(), temporary, job.kind):
            say(f"{job.source}: {text}")
    parts.remove()
    return Outcome(job, size, (count + skipped) * size[0] * size[1])


class _Frames:
    """The frames of a stream, a few of them decoded ahead."""

    def __init__(self, av: Any, source: Any, stream: Any) -> None:
        self.damaged, self.changed = 0, 0
        self._frames = _ahead(self._decoded(av, source, stream))
        self._next = next(self._frames, None)
        self._last: int | None = None
        self.size = None if self._next is None else (self._next.height, self._next.width)

    def _decoded(self, av: Any, source: Any, stream: Any) -> Iterator[Any]:
        packets = source.demux(stream)
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    return
                yield from packet.decode()
            except av.error.EOFError:
                return
            except av.error.InvalidDataError:
                self.damaged += 1

    def close(self) -> None:
        """Wait until nothing is decoded any more: FFmpeg crashes where a file is closed under another thread that reads it."""
        self._frames.close()

    def peek(self) -> Any:
        """The frame that comes next; None at the end."""
        return self._next

    def take(self) -> Any:
        """The next frame, later than the one before: muxers stop at times that go back, which damaged films have."""
        frame, self._next = self._next, next(self._frames, None)
        if frame.pts is None or (self._last is not None and frame.pts <= self._last):
            frame.pts = 0 if self._last is None else self._last + 1
        self._last = frame.pts
        return frame

    def skip(self, count: int) -> int:
        """Leave out frames that are done; gives how many there were."""
        done = 0
        while done < count and self._next is not None:
            self.take()
            done += 1
        return done


def _ahead(items: Iterator[Any]) -> Generator[Any, None, None]:
    """The same, ``_AHEAD`` of them computed by another thread before they are asked for."""
    worker = ThreadPoolExecutor(1)
    try:
        waiting = [worker.submit(next, items, None) for _ in range(_AHEAD)]
        while True:
            item = waiting.pop(0).result()
            if item is None:
                return
            waiting.append(worker.submit(next, items, None))
            yield item
    finally:
        worker.shutdown(cancel_futures=True)


def _segment(
    av: Any,
    frames: _Frames,
    path: Path,
    look: Look,
    enlarger: Enlarger,
    size: tuple[int, int],
    stream: Any,
    done: Callable[[int], object],
) -> int:
    """Upscale and encode the next frames."""
    count = 0
    with av.open(str(path), "w", format="nut") as output:
        encoder = _encoder(output, look, size, stream)
        while count < SEGMENT and frames.peek() is not None:
            frame = frames.take()
            pixels = to_pixels(frame, look)
            if (frame.height, frame.width) != frames.size:
                frames.changed += 1
            large = enlarger.rows(rows_of(pixels)).whole()
            encoded = to_frame(av, _even(_fitted(large, size)), look)
            encoded.pts, encoded.time_base = frame.pts, frame.time_base
            output.mux(encoder.encode(encoded))
            count += 1
            done(1)
        output.mux(encoder.encode())
    return count


def _encoder(output: Any, look: Look, size: tuple[int, int], stream: Any) -> Any:
    encoder = output.add_stream("libx264", rate=stream.average_rate or stream.guessed_rate or 25)
    encoder.height, encoder.width = (side + side % 2 for side in size)
    encoder.pix_fmt = "yuv420p10le" if look.deep else "yuv420p"
    # Without B-frames segments follow each other without overlap.
    encoder.options = {"crf": _CRF, "preset": "medium", "bf": "0"}
    context = encoder.codec_context
    context.time_base = stream.time_base
    context.color_range = LIMITED if look.limited else FULL
    context.colorspace, context.color_primaries, context.color_trc = look.matrix, look.primaries, look.transfer
    ratio = stream.sample_aspect_ratio
    if ratio:
        context.sample_aspect_ratio = ratio if look.turns % 2 == 0 else 1 / Fraction(ratio)
    return encoder


def _fitted(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """A frame of another size than the first, as large as its."""
    if pixels.shape[:2] == size:
        return pixels
    return resized(rows_of(pixels), *size, pixels.dtype.type).whole()


def _even(pixels: Pixels) -> Pixels:
    """With the last row and column once more where they are odd in number: 4:2:0 has one colour for 2x2 pixels."""
    height, width = pixels.shape[:2]
    return np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge") if height % 2 or width % 2 else pixels


def _is_cover(stream: Any) -> bool:
    """Whether it is the picture of an album rather than a film."""
    return "attached_pic" in str(stream.disposition).lower()


def _pyav() -> Any:
    try:
        import av
    except ImportError as error:
        raise UserError(
            f"videos are read and written by PyAV, which cannot be imported ({error}): pip install av"
        ) from error
    av.logging.set_level(av.logging.PANIC)
    return av
