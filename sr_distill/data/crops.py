"""Random training crops as a function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..contracts import Batch
from .packed import PairStore


@dataclass(frozen=True)
class Draw:
    """Crops of one step, an entry for each: which photo, top and left (B, 2) in LR pixels, and which of the 8 turns."""

    photos: np.ndarray
    corners: np.ndarray
    turns: np.ndarray


class StepBatches(Dataset[Batch]):
    """Item ``step`` is the batch of that training step, for one process of several.

    The crops of a step depend on the seed and the step alone, so a resumed run sees the same crops as an uninterrupted
    one, and N processes see together what one process would. Photos are drawn in proportion to their area; LR, HR and the
    teachers' outputs are cut, flipped and turned alike.

    Args:
        store: the packed pairs.
        lr_size: side of a crop in LR pixels.
        batch_size: crops in a step, over all processes; a multiple of ``world_size``.
        seed: seed of the run.
        rank, world_size: which share of the batch is this process's.
        device: keep all images on this device, and cut there; None: read them from the store for each crop.
    """

    def __init__(
        self,
        store: PairStore,
        lr_size: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | None = None,
    ) -> None:
        self._lr_size, self._batch_size, self._seed, self._scale = lr_size, batch_size, seed, store.scale
        share = batch_size // world_size
        self._mine = slice(rank * share, (rank + 1) * share)
        self._shapes = np.array(store.lr_shapes)
        areas = self._shapes.prod(1).astype(np.float64)
        self._chances = areas / areas.sum()
        kind = _StoredImages if device is None else functools.partial(_ResidentImages, device=device)
        self._lr, self._hr = kind(store.lr), kind(store.hr)
        self._teachers = {name: kind(images) for name, images in store.teachers.items()}

    def __getitem__(self, step: int) -> Batch:
        generator = np.random.default_rng((self._seed, step))
        photos = generator.choice(len(self._chances), size=self._batch_size, p=self._chances)
        places = generator.random((self._batch_size, 2))
        turns = generator.integers(0, 8, size=self._batch_size)
        corners = (places * (self._shapes[photos] - self._lr_size + 1)).astype(int)
        draw = Draw(photos[self._mine], corners[self._mine], turns[self._mine])
        return Batch(
            lr=self._lr.cut(draw, self._lr_size, 1),
            hr=self._hr.cut(draw, self._lr_size, self._scale),
            teacher_sr={name: images.cut(draw, self._lr_size, self._scale) for name, images in self._teachers.items()},
        )


class _StoredImages:
    """Images (H, W, 3) where they lie; a crop reads its own rows only."""

    def __init__(self, images: Sequence[np.ndarray]) -> None:
        self._images = images

    def cut(self, draw: Draw, lr_size: int, scale: int) -> Tensor:
        """uint8 crops (B, 3, side, side), side lr_size x scale, in the memory layout channels_last, which is that of images."""
        side = lr_size * scale
        crops = [
            _dihedral(self._images[photo][top : top + side, left : left + side], int(turn))
            for photo, (top, left), turn in zip(draw.photos, draw.corners * scale, draw.turns)
        ]
        return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)


class _ResidentImages:
    """All images on a device, one after the other as pixels (N, 3), 3 bytes each."""

    def __init__(self, images: Sequence[np.ndarray], device: torch.device) -> None:
        whole = [np.asarray(images[index]) for index in range(len(images))]
        starts = np.cumsum([0, *(image.shape[0] * image.shape[1] for image in whole)])
        self._pixels = torch.empty(int(starts[-1]), 3, dtype=torch.uint8, device=device)
        for image, start in zip(whole, starts):
            pixels = torch.from_numpy(image.reshape(-1, 3).copy())
            self._pixels[start : start + len(pixels)] = pixels.to(device)
        self._starts, self._widths = starts[:-1], np.array([image.shape[1] for image in whole])

    def cut(self, draw: Draw, lr_size: int, scale: int) -> Tensor:
        """As :meth:`_StoredImages.cut`."""
        side, top_left = lr_size * scale, (draw.corners * scale).T
        where = np.stack([self._starts[draw.photos], self._widths[draw.photos], *top_left, draw.turns])
        device = self._pixels.device
        start, width, top, left, turn = torch.from_numpy(where).to(device)[:, :, None, None]
        row, column = torch.arange(side, device=device)[:, None], torch.arange(side, device=device)[None]
        turned = (turn & 4) > 0
        row, column = torch.where(turned, column, row), torch.where(turned, row, column)
        row = torch.where((turn & 2) > 0, side - 1 - row, row)
        column = torch.where((turn & 1) > 0, side - 1 - column, column)
        index = start + (top + row) * width + left + column
        return self._pixels[index].permute(0, 3, 1, 2)


def step_loader(
    batches: StepBatches, first_step: int, total_steps: int, workers: int, pin_memory: bool = False
) -> DataLoader[Batch]:
    """Batches of the steps ``first_step`` to ``total_steps - 1``, in order; for a GPU in pinned memory."""
    return DataLoader(
        batches,
        sampler=range(first_step, total_steps),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # a loader draws a seed when it starts; that must not come out of the run's random state
    )


def _dihedral(crop: np.ndarray, index: int) -> np.ndarray:
    """One of the 8 flips and quarter turns of a square crop (H, W, C)."""
    if index & 1:
        crop = crop[:, ::-1]
    if index & 2:
        crop = crop[::-1]
    return crop.transpose(1, 0, 2) if index & 4 else crop
