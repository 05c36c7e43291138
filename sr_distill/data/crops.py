"""Random training crops as a function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

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
    """

    def __init__(
        self, store: PairStore, lr_size: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self._lr_size, self._batch_size, self._seed, self._scale = lr_size, batch_size, seed, store.scale
        share = batch_size // world_size
        self._mine = slice(rank * share, (rank + 1) * share)
        self._shapes = np.array(store.lr_shapes)
        areas = self._shapes.prod(1).astype(np.float64)
        self._chances = areas / areas.sum()
        self._lr, self._hr, self._teachers = store.lr, store.hr, store.teachers

    def draw(self, step: int) -> Draw:
        """The crops of a step, of this process."""
        generator = np.random.default_rng((self._seed, step))
        photos = generator.choice(len(self._chances), size=self._batch_size, p=self._chances)
        places = generator.random((self._batch_size, 2))
        turns = generator.integers(0, 8, size=self._batch_size)
        corners = (places * (self._shapes[photos] - self._lr_size + 1)).astype(int)
        return Draw(photos[self._mine], corners[self._mine], turns[self._mine])

    def __getitem__(self, step: int) -> Batch:
        draw = self.draw(step)
        stored = {name: self._cut(images, draw, self._scale) for name, images in self._teachers.items()}
        return Batch(self._cut(self._lr, draw, 1), self._cut(self._hr, draw, self._scale), stored)

    def _cut(self, images: Sequence[np.ndarray], draw: Draw, scale: int) -> Tensor:
        """uint8 crops (B, 3, side, side), in the memory layout channels_last, which is that of images; each reads its own rows only."""
        side = self._lr_size * scale
        crops = [
            _dihedral(images[photo][top : top + side, left : left + side], int(turn))
            for photo, (top, left), turn in zip(draw.photos, draw.corners * scale, draw.turns)
        ]
        return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class ResidentCrops:
    """The crops of one step, to be cut where their images are kept.

    Attributes:
        places: where they lie (images, 5, B), an entry each for LR, HR and the teachers' outputs.
        cut: makes the batch, uint8, of places on the device.
    """

    places: Tensor
    cut: Callable[[Tensor], Batch]

    def to(self, device: torch.device, channels_last: bool = False) -> Batch:
        """As :meth:`Batch.to`."""
        return self.cut(self.places.to(device, non_blocking=True)).to(device, channels_last)


class ResidentBatches(StepBatches):
    """The same crops of images that are all kept on a device, where they are cut, too: item ``step`` says where they lie.

    Args:
        store, lr_size, batch_size, seed, rank, world_size: as for :class:`StepBatches`.
        device: where images are kept, 3 bytes a pixel.
    """

    def __init__(self, store: PairStore, *args: Any, device: torch.device, **kwargs: Any) -> None:
        super().__init__(store, *args, **kwargs)
        large = (store.hr, *store.teachers.values())
        scaled = [(store.lr, 1), *((images, store.scale) for images in large)]
        self._resident = [(_ResidentImages(images, device), scale) for images, scale in scaled]

    def __getitem__(self, step: int) -> ResidentCrops:
        draw = self.draw(step)
        places = [images.find(draw, scale) for images, scale in self._resident]
        return ResidentCrops(torch.from_numpy(np.stack(places)), self._batch_of)

    def _batch_of(self, places: Tensor) -> Batch:
        sides = [(images, self._lr_size * scale) for images, scale in self._resident]
        lr, hr, *stored = (images.cut(place, side) for (images, side), place in zip(sides, places))
        return Batch(lr, hr, dict(zip(self._teachers, stored)))


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

    def find(self, draw: Draw, scale: int) -> np.ndarray:
        """Where crops lie (5, B): the first pixel of the photo, its width, top, left and turn."""
        return np.stack([self._starts[draw.photos], self._widths[draw.photos], *(draw.corners * scale).T, draw.turns])

    def cut(self, places: Tensor, side: int) -> Tensor:
        """uint8 crops (B, 3, side, side) at places on the device, in channels_last."""
        device = self._pixels.device
        start, width, top, left, turn = places[:, :, None, None]
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
