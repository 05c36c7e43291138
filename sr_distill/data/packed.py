"""Decoded training pairs and teachers' outputs: each is made once, and a crop reads its own rows only.

Below ``cache_dir``: ``images/`` with the pairs and ``teacher_<key>/`` with the outputs of a teacher, both packs; and ``hashes.json``.
A pair's key is a hash of the content of its photo and of how it is used: what else is trained on plays no part.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from ..devices import process_share, together
from ..errors import ImageError, UserError
from ..files import find
from ..options.sections import SourceOptions
from . import embedded
from .bicubic import downscale_to_uint8
from .hashes import FileHashes
from .images import left_out, list_images, read_rgb, to_pixels, to_tensor
from .likeness import LEAST, unlike
from .packs import Entry, Pack, PackedImages, Progress

_FORMAT = 3  # raise it when the way pairs are made changes
_TEACHER_FORMAT = 2  # raise it when the way teachers' outputs are made changes

Upscale = Callable[[Tensor], Tensor]
"""uint8 LR (3, h, w) to uint8 SR (3, h*scale, w*scale)."""


@dataclass(frozen=True)
class Photo:
    """One training photo: where it lies and how it is used; ``lr_folder`` is where the LR images of its source lie, if they are given."""

    name: str
    hr: Path
    lr: Path | None
    downscale: int
    lr_folder: Path | None = None


class PairStore:
    """Aligned LR and HR images, and the stored outputs of teachers if there are any.

    Args:
        folder: the cache folder.
        scale: upscaling factor.
        pairs: name, key and place of each pair.
        skipped: why photos are not used, a sentence each.
    """

    def __init__(self, folder: Path, scale: int, pairs: list[tuple[str, str, Entry]], skipped: list[str]) -> None:
        self.folder = folder
        self.scale = scale
        self.skipped = skipped
        self.names = [name for name, _, _ in pairs]
        self._keys = [key for _, key, _ in pairs]
        self.lr, self.hr = (PackedImages([entry for _, _, entry in pairs], part) for part in (0, 1))
        self.lr_shapes = self.lr.shapes
        self.teachers: dict[str, PackedImages] = {}

    @property
    def key(self) -> str:
        """A hash of the content of all pairs."""
        return hashlib.sha256(" ".join(sorted(self._keys)).encode()).hexdigest()[:32]

    def add_teacher(
        self,
        name: str,
        key: str,
        upscale: Upscale,
        progress: Progress = iter,
        in_tiles: Callable[[], tuple[str, Upscale]] | None = None,
    ) -> int:
        """Store a teacher's outputs of whole images in full precision, as far as they are not there yet.

        Args:
            name: under which a batch has them.
            key: identifies the teacher's weights.
            upscale: the teacher; raises MemoryError for an image that it cannot take as a whole.
            progress: wraps the loop over images, for a progress bar.
            in_tiles: called if there are such images; how they are cut into tiles, which is a part of their keys, and the
                teacher that does that. None: the MemoryError goes on.

        Returns:
            How many of the outputs were made in tiles.

        Raises:
            UserError: an output cannot be written; what was stored before stays.
        """

        def output(upscale: Upscale, index: int) -> Tensor:
            try:
                return upscale(to_tensor(self.lr[index]))
            except ImageError as error:
                raise UserError(f"{self.names[index]}: {error}; nothing was stored of it.") from error

        self.teachers[name], tiled = stored_outputs(self.folder, key, self._keys, output, upscale, progress, in_tiles)
        return tiled


def stored_outputs(
    folder: Path,
    teacher: str,
    keys: Sequence[str],
    output: Callable[[Upscale, int], Tensor],
    upscale: Upscale,
    progress: Progress = iter,
    in_tiles: Callable[[], tuple[str, Upscale]] | None = None,
) -> tuple[PackedImages, int]:
    """A teacher's outputs for LR images that have these keys; those that are not in the cache ``folder`` yet are made and stored there.

    Args:
        teacher: the key of the teacher's weights.
        output: applies the function it is given to the image of an index.
        upscale, progress, in_tiles: as of :meth:`PairStore.add_teacher`.

    Returns:
        The outputs, and how many were made in tiles.

    Raises:
        UserError: an output cannot be made or written; what was stored before stays.
    """
    pack = Pack(folder / f"teacher_{teacher}_fp32_{_TEACHER_FORMAT}")

    def whole(index: int) -> list[np.ndarray] | None:
        try:
            return [to_pixels(output(upscale, index))]
        except MemoryError:
            if in_tiles is None:
                raise
            return None

    entries, too_large = pack.fill(keys, whole, progress)
    keys = list(keys)
    if too_large and in_tiles is not None:
        how, tiled = in_tiles()
        for index in too_large:
            keys[index] = f"{keys[index]} {how}"
        entries, _ = pack.fill(keys, lambda index: [to_pixels(output(tiled, index))], progress)
    return PackedImages([entries[key] for key in keys]), len(too_large)


def open_pairs(
    sources: Sequence[SourceOptions],
    scale: int,
    lr_size: int,
    cache_dir: Path,
    on_unreadable: str,
    progress: Progress = iter,
) -> PairStore:
    """Open the pairs of the photos of ``sources``; those that are not in ``cache_dir`` yet are decoded and stored there.

    Several processes share the work, and each gets the same store or the same error. ``progress`` wraps the loop over the photos that are
    decoded, for a progress bar.

    Raises:
        UserError: a photo cannot be used and ``on_unreadable`` is "stop" (all such photos are listed), or none is left, or
            a pair cannot be written, or LR images are not those of their photos.
    """
    photos = together(lambda: [photo for source in sources for photo in _photos(source, scale)])[0]
    keys, problems = _keys(photos, scale, FileHashes(cache_dir / "hashes.json"))
    entries = _decoded(photos, keys, scale, Pack(cache_dir / "images", count=2), problems, progress)
    pairs, used = [], []
    for index, photo in enumerate(photos):
        if index not in problems:
            entry = entries[keys[index]]
            if min(entry.shapes[0]) < lr_size:
                problems[index] = _too_small(photo, entry, scale, lr_size)
            else:
                pairs.append((photo.name, keys[index], entry))
                used.append(photo)
    skipped = [problems[index] for index in sorted(problems)]
    if skipped and on_unreadable == "stop":
        raise UserError(_unusable(skipped))
    if not pairs:
        raise UserError(f"no usable training photo is left:\n{_listed(skipped)}")
    folders = [find(source.hr, "training folder") for source in sources if source.hr != embedded.NAME]
    store = PairStore(cache_dir, scale, pairs, [*skipped, *(line for folder in folders for line in left_out(folder))])
    _check_lr(store, used)
    return store


def _check_lr(store: PairStore, photos: list[Photo]) -> None:
    """Stop where a folder of LR images, as a few of them show, is not that of its HR photos."""
    for folder in dict.fromkeys(photo.lr_folder for photo in photos if photo.lr_folder is not None):
        indices = [index for index, photo in enumerate(photos) if photo.lr_folder == folder]
        found = unlike(len(indices), functools.partial(_loaded, store, indices), store.scale)
        if found is not None:
            raise UserError(
                f"{folder}: these LR images are not those of their HR photos: names and sizes fit, but the pictures do not (correlation "
                f"{found:.2f} with the photos made small; {LEAST} at least where they are the same). Are they mirrored, or numbered otherwise?"
            )


def _loaded(store: PairStore, indices: list[int], position: int) -> tuple[Tensor, Tensor]:
    index = indices[position]
    return to_tensor(store.lr[index]), to_tensor(store.hr[index])


def _photos(source: SourceOptions, scale: int) -> list[Photo]:
    if source.hr == embedded.NAME:
        return [Photo(path.name, path, None, source.downscale) for path in embedded.training_photos()]
    folder = find(source.hr, "training folder")
    files = list_images(folder)
    if not files:
        raise UserError(f"{folder}: no image found in this training folder or below it.")
    lr_folder = find(source.lr, "folder of LR images") if source.lr else None
    photos = []
    for path in files:
        name = path.relative_to(folder)
        photos.append(Photo(name.as_posix(), path, _lr_of(name, lr_folder, scale), source.downscale, lr_folder))
    return photos


def _lr_of(name: Path, folder: Path | None, scale: int) -> Path | None:
    """The LR file for an HR file: ``NAMExS`` as DIV2K has it, or the same name; png or the same extension."""
    if folder is None:
        return None
    names = [f"{name.stem}x{scale}{name.suffix}", f"{name.stem}x{scale}.png", name.name, f"{name.stem}.png"]
    candidates = [folder / name.parent / candidate for candidate in names]
    return next((path for path in candidates if path.exists()), candidates[0])


def _keys(photos: list[Photo], scale: int, hashes: FileHashes) -> tuple[list[str], dict[int, str]]:
    """The key of each photo, and what is wrong with those of which there is none, by index."""
    rank, processes = process_share()

    def share() -> tuple[dict[int, str], dict[int, str]]:
        keys, problems = {}, {}
        for index in range(rank, len(photos), processes):
            photo = photos[index]
            try:
                contents = [hashes.of(path) for path in (photo.hr, photo.lr) if path is not None]
            except UserError as error:
                problems[index] = str(error)
            else:
                text = " ".join(map(str, [_FORMAT, scale, photo.downscale, *contents]))
                keys[index] = hashlib.sha256(text.encode()).hexdigest()[:32]
        hashes.save()
        return keys, problems

    shares = together(share)
    keys = {index: key for found, _ in shares for index, key in found.items()}
    problems = {index: problem for _, found in shares for index, problem in found.items()}
    return [keys.get(index, "") for index in range(len(photos))], problems


def _decoded(
    photos: list[Photo], keys: list[str], scale: int, pack: Pack, problems: dict[int, str], progress: Progress
) -> dict[str, Entry]:
    """The entries of all photos that can be decoded; what is wrong with the others is added to ``problems``."""
    wanted = [index for index in range(len(photos)) if index not in problems]
    found: dict[int, str] = {}

    def make(position: int) -> list[np.ndarray] | None:
        index = wanted[position]
        try:
            return list(_read_pair(photos[index], scale))
        except UserError as error:
            found[index] = str(error)
            return None

    entries, _ = pack.fill([keys[index] for index in wanted], make, progress)
    for others in together(lambda: found):
        problems.update(others)
    return entries


def _too_small(photo: Photo, entry: Entry, scale: int, lr_size: int) -> str:
    height, width = entry.shapes[1]
    return (
        f"{photo.hr}: too small: {width}x{height} pixels, but a crop needs "
        f"{lr_size * scale}x{lr_size * scale} (data.lr_size {lr_size} x scale {scale})."
    )


def _read_pair(photo: Photo, scale: int) -> tuple[np.ndarray, np.ndarray]:
    """LR and HR as uint8 (h, w, 3) and (h*scale, w*scale, 3), cut to a multiple of the scale first."""
    pixels = read_rgb(photo.hr)
    if min(pixels.shape[:2]) < photo.downscale * scale:
        size, needed = f"{pixels.shape[1]}x{pixels.shape[0]}", photo.downscale * scale
        raise UserError(f"{photo.hr}: too small: {size} pixels, but one LR pixel needs {needed}x{needed}.")
    pixels = _mod_crop(pixels, photo.downscale)
    if photo.downscale > 1:
        pixels = to_pixels(downscale_to_uint8(to_tensor(pixels), photo.downscale))
    hr = _mod_crop(pixels, scale)
    height, width = hr.shape[0] // scale, hr.shape[1] // scale
    if photo.lr is None:
        return to_pixels(downscale_to_uint8(to_tensor(hr), scale)), hr
    lr = read_rgb(photo.lr)
    if lr.shape != (height, width, 3):
        raise UserError(
            f"{photo.lr}: {lr.shape[1]}x{lr.shape[0]} pixels, but {photo.hr} at scale {scale} needs {width}x{height}."
        )
    return lr, hr


def _mod_crop(pixels: np.ndarray, multiple: int) -> np.ndarray:
    height, width = (size - size % multiple for size in pixels.shape[:2])
    return pixels[:height, :width]


def _unusable(reasons: list[str]) -> str:
    advice = "set data.on_unreadable to skip to go on without them"
    return f"{len(reasons)} training image(s) cannot be used ({advice}):\n{_listed(reasons)}"


def _listed(reasons: list[str], most: int = 10) -> str:
    lines = [f"  {reason}" for reason in reasons[:most]]
    return "\n".join(lines + ([f"  and {len(reasons) - most} more"] if len(reasons) > most else []))
