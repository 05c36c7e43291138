"""Decoded training pairs in flat memory-mapped files: decoded once, and a crop reads its own rows only.

A packed set is a folder ``<cache_dir>/pairs_<key>/`` with ``index.json``, ``lr.bin``, ``hr.bin`` and, for each teacher whose
outputs were stored, ``teacher_<key>.bin``. The key is a hash of the content of the photos and of how they are used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from ..errors import UserError
from ..files import atomic_folder, atomic_path, find, write_json
from ..options.schema import SourceOptions
from . import embedded
from .bicubic import downscale_to_uint8
from .images import list_images, read_rgb, to_pixels, to_tensor

_FORMAT = 2  # raise it when the files or the way they are made change


@dataclass(frozen=True)
class Photo:
    """One training photo: where it lies and how it is used."""

    name: str
    hr: Path
    lr: Path | None
    downscale: int


class PackedImages:
    """Images of known shapes one after the other in one file; item ``i`` is a uint8 view (H, W, 3)."""

    def __init__(self, path: Path, shapes: list[tuple[int, int]]) -> None:
        self.shapes = shapes
        sizes = [height * width * 3 for height, width in shapes]
        self._starts = np.concatenate([[0], np.cumsum(sizes)])
        if path.stat().st_size != self._starts[-1]:
            raise UserError(f"{path} is damaged (its size is wrong): delete the folder {path.parent}, it is made anew.")
        self._bytes = np.memmap(path, dtype=np.uint8, mode="r")

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, index: int) -> np.ndarray:
        start, end = self._starts[index : index + 2]
        return self._bytes[start:end].reshape(*self.shapes[index], 3)


class PairStore:
    """Aligned LR and HR images, and the stored outputs of teachers if there are any."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        self.scale: int = index["scale"]
        self.names: list[str] = index["names"]
        self.skipped: list[str] = index["skipped"]
        self.lr_shapes = [(height, width) for height, width in index["lr_shapes"]]
        self.lr = PackedImages(folder / "lr.bin", self.lr_shapes)
        self.hr = PackedImages(folder / "hr.bin", self._hr_shapes)
        self.teachers: dict[str, PackedImages] = {}

    @property
    def _hr_shapes(self) -> list[tuple[int, int]]:
        return [(height * self.scale, width * self.scale) for height, width in self.lr_shapes]

    def add_teacher(
        self,
        name: str,
        key: str,
        upscale: Callable[[Tensor], Tensor],
        progress: Callable[[Iterable[int]], Iterable[int]] = iter,
    ) -> None:
        """Store a teacher's outputs, unless they are there already.

        Args:
            name: under which a batch has them.
            key: identifies the teacher's weights.
            upscale: uint8 LR (3, h, w) to uint8 SR (3, h*scale, w*scale).
            progress: wraps the loop over images, for a progress bar.
        """
        path = self.folder / f"teacher_{key}.bin"
        if not path.exists():
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                for index in progress(range(len(self.names))):
                    file.write(to_pixels(upscale(to_tensor(self.lr[index]))).tobytes())
        self.teachers[name] = PackedImages(path, self._hr_shapes)


def open_pairs(
    sources: Iterable[SourceOptions], scale: int, lr_size: int, cache_dir: Path, on_unreadable: str
) -> PairStore:
    """Pack the photos of ``sources`` into ``cache_dir``, or open the pack made earlier from the same content.

    Raises:
        UserError: a photo cannot be used and ``on_unreadable`` is "stop" (all such photos are listed), or none is left.
    """
    photos = [photo for source in sources for photo in _photos(source, scale)]
    folder = cache_dir / f"pairs_{_key(photos, scale, lr_size)}"
    if not (folder / "index.json").exists():
        with atomic_folder(folder) as temporary:
            _pack(photos, scale, lr_size, temporary, on_unreadable)
    store = PairStore(folder)
    if store.skipped and on_unreadable == "stop":
        raise UserError(_unusable(store.skipped))
    return store


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
        photos.append(Photo(name.as_posix(), path, _lr_of(name, lr_folder, scale), source.downscale))
    return photos


def _lr_of(name: Path, folder: Path | None, scale: int) -> Path | None:
    """The LR file for an HR file: ``NAMExS`` as DIV2K has it, or the same name; png or the same extension."""
    if folder is None:
        return None
    names = [f"{name.stem}x{scale}{name.suffix}", f"{name.stem}x{scale}.png", name.name, f"{name.stem}.png"]
    candidates = [folder / name.parent / candidate for candidate in names]
    return next((path for path in candidates if path.exists()), candidates[0])


def _key(photos: list[Photo], scale: int, lr_size: int) -> str:
    digest = hashlib.sha256(f"{_FORMAT} {scale} {lr_size}".encode())
    for photo in photos:
        digest.update(f"\n{photo.name} {photo.downscale}".encode())
        for path in (photo.hr, photo.lr):
            if path is not None and path.is_file():
                try:
                    digest.update(hashlib.sha256(path.read_bytes()).digest())
                except OSError as error:
                    digest.update(str(error).encode())
    return digest.hexdigest()[:16]


def _pack(photos: list[Photo], scale: int, lr_size: int, folder: Path, on_unreadable: str) -> None:
    names, shapes, skipped = [], [], []
    with (folder / "lr.bin").open("wb") as lr_file, (folder / "hr.bin").open("wb") as hr_file:
        for photo in photos:
            try:
                lr, hr = _read_pair(photo, scale, lr_size)
            except UserError as error:
                skipped.append(str(error))
                continue
            lr_file.write(lr.tobytes())
            hr_file.write(hr.tobytes())
            names.append(photo.name)
            shapes.append(lr.shape[:2])
    if skipped and on_unreadable == "stop":
        raise UserError(_unusable(skipped))
    if not names:
        raise UserError(f"no usable training photo is left:\n{_listed(skipped)}")
    write_json(folder / "index.json", {"scale": scale, "names": names, "lr_shapes": shapes, "skipped": skipped})


def _read_pair(photo: Photo, scale: int, lr_size: int) -> tuple[np.ndarray, np.ndarray]:
    """LR and HR as uint8 (h, w, 3) and (h*scale, w*scale, 3), cut to a multiple of the scale first."""
    pixels = _mod_crop(read_rgb(photo.hr), photo.downscale)
    if photo.downscale > 1:
        pixels = to_pixels(downscale_to_uint8(to_tensor(pixels), photo.downscale))
    hr = _mod_crop(pixels, scale)
    height, width = hr.shape[0] // scale, hr.shape[1] // scale
    if min(height, width) < lr_size:
        raise UserError(
            f"{photo.hr}: too small: {hr.shape[1]}x{hr.shape[0]} pixels, but a crop needs "
            f"{lr_size * scale}x{lr_size * scale} (data.lr_size {lr_size} x scale {scale})."
        )
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
