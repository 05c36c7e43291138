"""Videos: frame by frame, in constant memory, with everything else in the file kept; what is done stays done."""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ..console import progress_bar
from ..devices import is_out_of_memory
from ..errors import UserError
from ..files import atomic_path, write_json
from .batch import Outcome
from .enlarge import Enlarger
from .files import Job
from .resize import resized
from .rows import Pixels, rows_of

SEGMENT = 120
"""Frames that are written together: what an interruption can lose."""

_CRF = "16"  # of libx264: hardly to be told from the frames themselves
_PLANES = "yuv444p16le"
_LUMA_OF = {
    1: (0.2126, 0.0722),
    4: (0.30, 0.11),
    5: (0.299, 0.114),
    6: (0.299, 0.114),
    7: (0.212, 0.087),
    9: (0.2627, 0.0593),
    10: (0.2627, 0.0593),
}
"""How much red and blue weigh in luma, by the number of a matrix in ITU-T H.273, which streams have."""
_LIMITED, _FULL = 1, 2
_HD = 720  # lines, from which on players take a stream that does not say so for BT.709
_AHEAD = 4  # frames that are decoded before their turn


@dataclass(frozen=True)
class _Look:
    """What the numbers of a stream's frames mean.

    Attributes:
        matrix: of H.273.
        limited: whether black is 16 and white 235.
        primaries, transfer: of H.273.
        deep: whether there are more than 8 bits.
        turns: quarter turns to the left by which frames are shown.
    """

    matrix: int
    limited: bool
    primaries: int
    transfer: int
    deep: bool
    turns: int


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
        with contextlib.ExitStack() as stack:
            try:
                source = stack.enter_context(av.open(str(job.source), metadata_errors="replace"))
            except (av.error.FFmpegError, OSError) as error:
                raise UserError(f"{job.source}: cannot be read as a video ({_reason(error)}).") from error
            return _upscaled(av, source, job, enlarger, say, quiet)
    except UserError as error:
        said = str(error)
        return Outcome(
            job, error=said if str(job.source) in said or str(job.target) in said else f"{job.source}: {said}"
        )
    except Exception as error:
        if is_out_of_memory(error):
            return Outcome(job, error=f"{job.source}: not enough memory; try a smaller --tile.")
        if type(error).__module__.startswith("av"):
            return Outcome(job, error=f"{job.source}: {_reason(error)}.")
        raise


def _upscaled(av: Any, source: Any, job: Job, enlarger: Enlarger, say: Callable[[str], object], quiet: bool) -> Outcome:
    stream = next((s for s in source.streams.video if not _is_cover(s)), None)
    if stream is None:
        raise UserError(f"{job.source}: there is no video in it.")
    stream.thread_type = "AUTO"
    frames = _Frames(av, source, stream)
    first = frames.peek()
    if first is None:
        raise UserError(f"{job.source}: none of its frames can be decoded.")
    look = _look(first)
    if first.interlaced_frame:
        say(f"{job.source}: is interlaced; deinterlaced first it comes out better.")
    height, width = (first.height, first.width) if look.turns % 2 == 0 else (first.width, first.height)
    size = enlarger.size_of(height, width)
    parts = _Parts(
        job, {"source": _fingerprint(job.source), "networks": enlarger.key, "size": size, "segment": SEGMENT}
    )
    if parts.done:
        say(f"{job.source}: goes on after {parts.done * SEGMENT} frames that an earlier run finished.")
    total = stream.frames or (
        int(stream.duration * stream.time_base * stream.average_rate)
        if stream.duration and stream.average_rate
        else None
    )
    count = 0
    with progress_bar(total=total, unit="frame", desc=job.source.name, disable=True if quiet else None) as bar:
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
        for text in _join(av, job.source, stream.index, parts.files(), temporary, job.kind):
            say(f"{job.source}: {text}")
    parts.remove()
    return Outcome(job, size, (count + skipped) * size[0] * size[1])


class _Frames:
    """The frames of a stream, a few of them decoded ahead."""

    def __init__(self, av: Any, source: Any, stream: Any) -> None:
        self.damaged, self.changed = 0, 0
        self._frames = _ahead(self._decoded(av, source, stream))
        self._next = next(self._frames, None)
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

    def peek(self) -> Any:
        """The frame that comes next; None at the end."""
        return self._next

    def take(self) -> Any:
        """The next frame."""
        frame, self._next = self._next, next(self._frames, None)
        return frame

    def skip(self, count: int) -> int:
        """Leave out frames that are done; gives how many there were."""
        done = 0
        while done < count and self._next is not None:
            self.take()
            done += 1
        return done


def _ahead(items: Iterator[Any]) -> Iterator[Any]:
    """The same, ``_AHEAD`` of them computed by another thread before they are asked for."""
    with ThreadPoolExecutor(1) as worker:
        waiting = [worker.submit(next, items, None) for _ in range(_AHEAD)]
        while True:
            item = waiting.pop(0).result()
            if item is None:
                return
            waiting.append(worker.submit(next, items, None))
            yield item


class _Parts:
    """Segments that are finished, beside the result."""

    def __init__(self, job: Job, made_by: dict[str, Any]) -> None:
        self._folder = job.target.with_name(f".{job.target.name}.parts")
        note = self._folder / "made_by.json"
        made_by = json.loads(json.dumps(made_by))
        if self._folder.exists() and _read_json(note) != made_by:
            shutil.rmtree(self._folder)  # of another source, network or size
        if not self._folder.exists():
            write_json(note, made_by)
        self.done = 0
        while self._path(self.done).exists():
            self.done += 1

    def _path(self, index: int) -> Path:
        return self._folder / f"{index:06d}.nut"

    def next(self) -> Path:
        """The file of the next segment."""
        return self._path(self.done)

    def files(self) -> list[Path]:
        """All segments, in their order."""
        return [self._path(index) for index in range(self.done)]

    def remove(self) -> None:
        """When the result is there."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _segment(
    av: Any,
    frames: _Frames,
    path: Path,
    look: _Look,
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
            pixels = _pixels(frame, look)
            if (frame.height, frame.width) != frames.size:
                frames.changed += 1
            large = enlarger.rows(rows_of(pixels)).whole()
            encoded = _frame(av, _even(_fitted(large, size)), look)
            encoded.pts, encoded.time_base = frame.pts, frame.time_base
            output.mux(encoder.encode(encoded))
            count += 1
            done(1)
        output.mux(encoder.encode())
    return count


def _encoder(output: Any, look: _Look, size: tuple[int, int], stream: Any) -> Any:
    encoder = output.add_stream("libx264", rate=stream.average_rate or stream.guessed_rate or 25)
    encoder.height, encoder.width = (side + side % 2 for side in size)
    encoder.pix_fmt = "yuv420p10le" if look.deep else "yuv420p"
    encoder.options = {
        "crf": _CRF,
        "preset": "medium",
        "bf": "0",
    }  # without B-frames segments follow each other without overlap
    context = encoder.codec_context
    context.time_base = stream.time_base
    context.color_range = _LIMITED if look.limited else _FULL
    context.colorspace, context.color_primaries, context.color_trc = look.matrix, look.primaries, look.transfer
    ratio = stream.sample_aspect_ratio
    if ratio:
        context.sample_aspect_ratio = ratio if look.turns % 2 == 0 else 1 / Fraction(ratio)
    return encoder


def _look(frame: Any) -> _Look:
    matrix = int(frame.colorspace)
    if matrix not in _LUMA_OF:  # it does not say: as players take it, which would guess otherwise for the larger one
        matrix = 1 if frame.height >= _HD else 6
    depth = max(component.bits for component in frame.format.components)
    full = int(frame.color_range) == _FULL or frame.format.name.startswith("yuvj")
    return _Look(
        matrix, not full, int(frame.color_primaries), int(frame.color_trc), depth > 8, round(frame.rotation / 90) % 4
    )


def _pixels(frame: Any, look: _Look) -> Pixels:
    """RGB float32 in [0, 1], turned as it is shown; the matrix is ours, because swscale's rounds down, by a level on average."""
    scaled = frame.reformat(format=_PLANES).to_ndarray().astype(np.float32) / 256
    matrix, offset = _to_rgb(look)
    rgb = ((scaled - offset) @ matrix.T).clip(0, 1)
    return np.ascontiguousarray(np.rot90(rgb, look.turns))


def _frame(av: Any, pixels: Pixels, look: _Look) -> Any:
    """The inverse of :func:`_pixels`, but for the turn, in 4:2:0."""
    matrix, offset = _to_rgb(look)
    yuv = pixels @ np.linalg.inv(matrix).T.astype(np.float32) + offset
    levels = np.rint(yuv * 256).clip(0, 65535).astype(np.uint16)
    return av.VideoFrame.from_ndarray(levels, _PLANES).reformat(format="yuv420p10le" if look.deep else "yuv420p")


def _to_rgb(look: _Look) -> tuple[np.ndarray, np.ndarray]:
    """Matrix (3, 3) that takes Y, Cb, Cr in levels of 8 bits, less an offset (3,), to RGB in [0, 1] (ITU-T H.273, section 8.3)."""
    red, blue = _LUMA_OF[look.matrix]
    green = 1 - red - blue
    luma, chroma = (219, 224) if look.limited else (255, 255)
    cb, cr = 2 * (1 - blue), 2 * (1 - red)
    matrix = np.array([[1, 0, cr], [1, -blue * cb / green, -red * cr / green], [1, cb, 0]]) / [luma, chroma, chroma]
    return matrix.astype(np.float32), np.array([16 if look.limited else 0, 128, 128], np.float32)


def _fitted(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """A frame of another size than the first, as large as its."""
    if pixels.shape[:2] == size:
        return pixels
    return resized(rows_of(pixels), *size, pixels.dtype.type).whole()


def _even(pixels: Pixels) -> Pixels:
    """With the last row and column once more where they are odd in number: 4:2:0 has one colour for 2x2 pixels."""
    height, width = pixels.shape[:2]
    return np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge") if height % 2 or width % 2 else pixels


def _join(av: Any, source: Path, video_index: int, parts: list[Path], target: Path, suffix: str) -> list[str]:
    """Put the segments and everything else of the source into one file; gives what could not be kept."""
    lost: list[str] = []
    name = {".mkv": "matroska", ".mov": "mov", ".m4v": "mp4"}.get(suffix, suffix[1:])
    options = {"movflags": "+faststart"} if name in ("mp4", "mov") else {}
    with av.open(str(source), metadata_errors="replace") as original, av.open(str(parts[0])) as first, \
            av.open(str(target), "w", format=name, options=options) as output:  # fmt: skip
        video = output.add_stream_from_template(first.streams.video[0])
        video.time_base = original.streams[video_index].time_base
        video.codec_context.framerate = original.streams[video_index].average_rate or 0
        video.metadata.update(original.streams[video_index].metadata)
        output.metadata.update(original.metadata)
        with contextlib.suppress(Exception):
            output.set_chapters(original.chapters())
        copied = {}
        for stream in original.streams:
            if stream.index == video_index:
                continue
            try:
                copied[stream.index] = output.add_stream_from_template(stream)
                copied[stream.index].metadata.update(stream.metadata)
            except Exception as error:
                lost.append(
                    f"its stream {stream.index} ({stream.type}) does not fit into {name} and is left out ({_reason(error)})."
                )
        others = [original.streams[index] for index in copied]
        packets = heapq.merge(
            _timed(_video_packets(av, parts), lambda packet: video),
            _timed(original.demux(*others) if others else iter(()), lambda packet: copied[packet.stream.index]),
            key=lambda item: item[0],
        )
        for _, packet, stream in packets:
            packet.stream = stream
            output.mux(packet)
    return lost


def _timed(packets: Iterator[Any], stream_of: Callable[[Any], Any]) -> Iterator[tuple[float, Any, Any]]:
    """Packets with their time in seconds and the stream they go to; a packet without a time goes with the one before."""
    now = 0.0
    for packet in packets:
        if packet.size == 0:  # the end of a stream
            continue
        if packet.dts is not None:
            now = float(packet.dts * packet.time_base)
        yield now, packet, stream_of(packet)


def _video_packets(av: Any, parts: list[Path]) -> Iterator[Any]:
    """Of all segments, with times that never go back."""
    last = None
    for part in parts:
        with av.open(str(part)) as segment:
            for packet in segment.demux(segment.streams.video[0]):
                if packet.size == 0:
                    continue
                if last is not None and packet.dts is not None and packet.dts <= last:
                    packet.dts = last + 1
                last = packet.dts if packet.dts is not None else last
                yield packet


def _is_cover(stream: Any) -> bool:
    """Whether it is the picture of an album rather than a film."""
    return "attached_pic" in str(stream.disposition).lower()


def _fingerprint(path: Path) -> str:
    """Of a file's size, its time and its beginning."""
    state = path.stat()
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(2**20))
    return f"{state.st_size}-{state.st_mtime_ns}-{digest.hexdigest()[:16]}"


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _pyav() -> Any:
    try:
        import av
    except ImportError as error:
        raise UserError(
            f"videos are read and written by PyAV, which cannot be imported ({error}): pip install av"
        ) from error
    av.logging.set_level(av.logging.PANIC)
    return av
