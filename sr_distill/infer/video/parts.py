"""Segments of a film that are finished, and the film that they become with all else that was in the source."""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ...files import write_json
from ..files import Job


class Parts:
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

    @contextlib.contextmanager
    def only_if_some(self) -> Iterator[None]:
        """Leave nothing behind where the first segment is not finished."""
        try:
            yield
        finally:
            if not self.done:
                self.remove()

    def remove(self) -> None:
        """When the result is there."""
        shutil.rmtree(self._folder, ignore_errors=True)


def open_film(av: Any, path: Path) -> Any:
    """Open a film, whatever its tags are encoded in: PyAV stops at what is no UTF-8 up to its version 18, unless it is told otherwise."""
    try:
        return av.open(str(path), metadata_errors="replace")
    except TypeError:  # from version 19 on there is nothing to tell
        return av.open(str(path))


def join(av: Any, source: Path, video_index: int, parts: list[Path], target: Path, suffix: str) -> list[str]:
    """Put the segments and everything else of the source into one file; gives what could not be kept."""
    lost: list[str] = []
    name = {".mkv": "matroska", ".mov": "mov", ".m4v": "mp4"}.get(suffix, suffix[1:])
    options = {"movflags": "+faststart"} if name in ("mp4", "mov") else {}
    with open_film(av, source) as original, av.open(str(parts[0])) as first, \
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
                    f"its stream {stream.index} ({stream.type}) does not fit into {name} and is left out ({reason_of(error)})."
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


def fingerprint(path: Path) -> str:
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


def reason_of(error: BaseException) -> str:
    """What an error says, in a line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
