"""Append-only stores of uint8 images: nothing in them is rewritten, so that nobody needs a lock and an interrupted pass goes on.

A pack is a folder of shards. A process that has something to add makes a shard of its own, ``NAME.bin`` and ``NAME.jsonl``, and
writes a line of the index when the bytes it names are in the file, with a checksum of them. Readers merge the shards. What a crash
left half done is not in the index; an image that two processes stored is there twice, which does no harm; what is wanted and was
damaged since is made anew.
"""

from __future__ import annotations

import contextlib
import functools
import json
import uuid
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..devices import process_share, together
from ..errors import UserError

Progress = Callable[[Iterable[int]], Iterable[int]]


class Entry(NamedTuple):
    """Images stored under one key: one after the other in a shard, from ``offset`` on, each (height, width, 3); CRC-32 of their bytes."""

    shard: Path
    offset: int
    shapes: tuple[tuple[int, int], ...]
    checksum: int


class Pack:
    """A folder of shards.

    Args:
        folder: made when the first image is stored.
        count: images in an entry.
    """

    def __init__(self, folder: Path, count: int = 1) -> None:
        self.folder = folder
        self._count = count
        self._damaged: set[Entry] = set()

    def entries(self) -> dict[str, Entry]:
        """What is stored, by key; lines of the index that cannot be read or name bytes that are not there do not count."""
        found: dict[str, Entry] = {}
        for index in sorted(self.folder.glob("*.jsonl")):
            shard = index.with_suffix(".bin")
            try:
                size, text = shard.stat().st_size, index.read_text(encoding="utf-8", errors="replace")
            except OSError:
                continue
            for line in text.split("\n")[:-1]:  # behind the last end of line there is nothing, or half a line
                key, entry = self._parsed(line, shard)
                if entry is not None and entry.offset + _size(entry) <= size and entry not in self._damaged:
                    found.setdefault(key, entry)
        return found

    def _parsed(self, line: str, shard: Path) -> tuple[str, Entry | None]:
        try:
            tree = json.loads(line)
            shapes = tuple((h, w) for h, w in tree["shapes"])
            key, entry = tree["key"], Entry(shard, tree["offset"], shapes, tree["crc32"])
        except (ValueError, TypeError, KeyError):
            return "", None
        numbers = [entry.offset, entry.checksum, *(length for shape in entry.shapes for length in shape)]
        sound = len(entry.shapes) == self._count and all(isinstance(n, int) and n >= 0 for n in numbers)
        return str(key), entry if sound else None

    def fill(
        self, keys: Sequence[str], make: Callable[[int], list[np.ndarray] | None], progress: Progress = iter
    ) -> tuple[dict[str, Entry], list[int]]:
        """Store what is missing or damaged; all processes share the work and get the same answer.

        Args:
            keys: what is wanted.
            make: gives the images of ``keys[index]``, uint8 (H, W, 3), or None to do without them.
            progress: wraps the loop over indices, for a progress bar.

        Returns:
            The entries, and the indices for which ``make`` gave None.

        Raises:
            UserError: an image cannot be written, or is gone at once; what was stored before stays.
        """
        rank, processes = process_share()
        for found in together(lambda: self._find_damaged(keys[rank::processes])):
            self._damaged |= found
        missing = together(lambda: self._missing(keys))[0]
        shares = together(lambda: self._add(missing[rank::processes], keys, make, progress))
        given_up = {index for share in shares for index in share}
        # Machines without a common disk do not see what the others stored: each makes the rest for itself.
        together(lambda: self._add([i for i in self._missing(keys) if i not in given_up], keys, make, progress))
        entries = self.entries()
        if any(key not in entries for index, key in enumerate(keys) if index not in given_up):
            raise UserError(f"{self.folder}: what was just stored there is gone; start again, it is made anew.")
        return entries, sorted(given_up)

    def _find_damaged(self, keys: Sequence[str]) -> set[Entry]:
        """The entries whose bytes are not those that were stored."""
        entries = self.entries()
        wanted = {entries[key] for key in keys if key in entries}
        return {
            entry
            for entry in wanted
            if _checksum(PackedImages([entry], p)[0] for p in range(self._count)) != entry.checksum
        }

    def _missing(self, keys: Sequence[str]) -> list[int]:
        entries = self.entries()
        return [index for index, key in enumerate(keys) if key not in entries]

    def _add(self, indices: list[int], keys: Sequence[str], make: Callable, progress: Progress) -> list[int]:
        """Store these; the indices that ``make`` gave up."""
        given_up, stored, shard = [], set(), None
        try:
            with contextlib.ExitStack() as stack:
                for index in progress(indices) if indices else ():
                    if keys[index] in stored:
                        continue
                    images = make(index)
                    if images is None:
                        given_up.append(index)
                        continue
                    shard = shard or stack.enter_context(_Shard(self.folder))
                    shard.add(keys[index], images)
                    stored.add(keys[index])
        except OSError as error:
            raise UserError(
                f"cannot write to {self.folder}: {error.strerror or error}. What was stored there before stays; "
                "make room, or name another folder (data.cache_dir), and start again."
            ) from error
        return given_up


class PackedImages:
    """Stored images in order; item ``i`` is a uint8 view (H, W, 3) of a memory map.

    It is pickled as names and places, without its bytes: another process maps the shards for itself.

    Args:
        entries: where the images are.
        part: which image of each entry.
    """

    def __init__(self, entries: Sequence[Entry], part: int = 0) -> None:
        self.shapes = [entry.shapes[part] for entry in entries]
        self._shards = sorted({entry.shard for entry in entries})
        number = {shard: index for index, shard in enumerate(self._shards)}
        self._places = [(number[e.shard], e.offset + _size(e, part)) for e in entries]
        self._maps: dict[int, np.memmap] = {}  # one for a shard, not for an image: files that are open are few

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, index: int) -> np.ndarray:
        (shard, start), (height, width) = self._places[index], self.shapes[index]
        if shard not in self._maps:
            self._maps[shard] = np.memmap(self._shards[shard], dtype=np.uint8, mode="r")
        return self._maps[shard][start : start + height * width * 3].reshape(height, width, 3)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}


class _Shard:
    """A new shard that one process writes."""

    def __init__(self, folder: Path) -> None:
        self._stem = folder / uuid.uuid4().hex

    def __enter__(self) -> _Shard:
        self._stem.parent.mkdir(parents=True, exist_ok=True)
        self._data = self._stem.with_suffix(".bin").open("xb")
        self._index = self._stem.with_suffix(".jsonl").open("x", encoding="utf-8")
        return self

    def add(self, key: str, images: list[np.ndarray]) -> None:
        """Write the bytes, and then the line that names them."""
        offset = self._data.tell()
        for image in images:
            self._data.write(image.tobytes())
        self._data.flush()
        shapes = [image.shape[:2] for image in images]
        line = {"key": key, "offset": offset, "shapes": shapes, "crc32": _checksum(images)}
        self._index.write(json.dumps(line) + "\n")
        self._index.flush()

    def __exit__(self, *error: object) -> None:
        with self._data:
            self._index.close()


def _checksum(images: Iterable[np.ndarray]) -> int:
    """CRC-32 of the bytes of images, one after the other."""
    return functools.reduce(lambda so_far, image: zlib.crc32(np.ascontiguousarray(image), so_far), images, 0)


def _size(entry: Entry, parts: int | None = None) -> int:
    """Bytes of the entry's images, or of the first ``parts`` of them."""
    return sum(height * width * 3 for height, width in entry.shapes[:parts])
