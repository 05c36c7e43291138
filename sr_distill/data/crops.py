"""Random training crops as a function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..contracts import Batch
from .packed import PairStore
from .packs import PackedImages


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
        self._store = store
        self._lr_size = lr_size
        self._batch_size = batch_size
        self._seed = seed
        share = batch_size // world_size
        self._mine = slice(rank * share, (rank + 1) * share)
        areas = np.array([height * width for height, width in store.lr_shapes], dtype=np.float64)
        self._chances = areas / areas.sum()

    def __getitem__(self, step: int) -> Batch:
        generator = np.random.default_rng((self._seed, step))
        photos = generator.choice(len(self._chances), size=self._batch_size, p=self._chances)
        places = generator.random((self._batch_size, 2))
        turns = generator.integers(0, 8, size=self._batch_size)
        drawn = list(zip(photos, places, turns))[self._mine]
        return Batch(
            lr=self._cut(self._store.lr, drawn, 1),
            hr=self._cut(self._store.hr, drawn, self._store.scale),
            teacher_sr={
                name: self._cut(images, drawn, self._store.scale) for name, images in self._store.teachers.items()
            },
        )

    def _cut(self, images: PackedImages, drawn: list, scale: int) -> torch.Tensor:
        crops = []
        for photo, place, turn in drawn:
            shape = np.array(self._store.lr_shapes[photo])
            top, left = (place * (shape - self._lr_size + 1)).astype(int) * scale
            side = self._lr_size * scale
            crops.append(_dihedral(images[photo][top : top + side, left : left + side], int(turn)))
        return torch.from_numpy(np.stack(crops).transpose(0, 3, 1, 2).copy())


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
