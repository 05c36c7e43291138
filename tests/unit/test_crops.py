"""Random crops: how often a photo is drawn, where crops lie, and how they are turned."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sr_distill.data.crops import StepBatches, step_loader


def _store(*photos, scale=2):
    """In place of packed pairs: LR photos; HR and the teacher's output are LR with every pixel repeated."""
    large = [photo.repeat(scale, 0).repeat(scale, 1) for photo in photos]
    shapes = [photo.shape[:2] for photo in photos]
    return SimpleNamespace(lr=photos, hr=large, scale=scale, lr_shapes=shapes, teachers={"one": large})


def _places(height, width):
    """A photo whose pixels say where they are: row, column, 0."""
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows, columns, np.zeros_like(rows)], axis=2).astype(np.uint8)


def test_photos_are_drawn_in_proportion_to_their_area():
    wide, high = np.full((8, 80, 3), 1, np.uint8), np.full((40, 8, 3), 2, np.uint8)  # 640 and 320 pixels
    batches = StepBatches(_store(wide, high), 8, 50, seed=1)
    drawn = Counter(int(crop[0, 0, 0]) for step in range(40) for crop in batches[step].lr)
    assert drawn.total() == 2000
    assert drawn[1] / 2000 == pytest.approx(2 / 3, abs=0.04)


def test_every_place_is_drawn_the_first_and_the_last_as_well():
    batches = StepBatches(_store(_places(6, 9)), 4, 50, seed=1)
    tops, lefts = (
        Counter(int(crop[channel].min()) for step in range(20) for crop in batches[step].lr) for channel in (0, 1)
    )
    assert sorted(tops) == [0, 1, 2]
    assert sorted(lefts) == [0, 1, 2, 3, 4, 5]
    assert min(tops.values()) > 250
    assert min(lefts.values()) > 110


def test_the_eight_turns_are_as_frequent_and_those_of_lr_and_hr_are_the_same():
    batches = StepBatches(_store(_places(4, 4)), 4, 50, seed=1)
    turns = Counter()
    for step in range(20):
        batch = batches[step]
        turns.update(crop.numpy().tobytes() for crop in batch.lr)
        repeated = batch.lr.repeat_interleave(2, 2).repeat_interleave(2, 3)
        assert torch.equal(batch.hr, repeated)
        assert torch.equal(batch.teacher_sr["one"], repeated)
    assert len(turns) == 8
    assert min(turns.values()) > 80
    assert max(turns.values()) < 170


def test_one_process_takes_the_whole_batch_and_three_take_thirds_in_order():
    store = _store(_places(9, 9))
    whole = StepBatches(store, 4, 6, 1)[2].lr
    assert len(whole) == 6
    for rank in range(3):
        assert torch.equal(StepBatches(store, 4, 6, 1, rank, 3)[2].lr, whole[2 * rank : 2 * rank + 2])


def test_seed_and_step_are_not_exchangeable():
    store = _store(_places(30, 30))
    assert not torch.equal(StepBatches(store, 4, 6, seed=1)[2].lr, StepBatches(store, 4, 6, seed=2)[1].lr)


def test_the_loader_leaves_the_random_state_of_the_run_alone():
    before = torch.get_rng_state()
    loaded = list(step_loader(StepBatches(_store(_places(9, 9)), 4, 2, 1), 0, 2, 0))
    assert len(loaded) == 2
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_images_that_are_kept_on_a_device_give_the_same_crops(scale):
    generator = np.random.default_rng(0)
    photos = [generator.integers(0, 256, (high, wide, 3), dtype=np.uint8) for high, wide in ((9, 7), (5, 12), (6, 6))]
    store = _store(*photos, scale=scale)
    stored = StepBatches(store, 5, 40, seed=1)
    resident = StepBatches(store, 5, 40, seed=1, device=torch.device("cpu"))
    for step in range(5):
        first, second = stored[step], resident[step]
        for a, b in ((first.lr, second.lr), (first.hr, second.hr), (first.teacher_sr["one"], second.teacher_sr["one"])):
            assert a.dtype == b.dtype == torch.uint8
            assert torch.equal(a, b)
            for crops in (a, b):
                assert crops.is_contiguous(memory_format=torch.channels_last)
