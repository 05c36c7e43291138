"""Random crops: how often a photo is drawn, where crops lie, and how they are turned."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from sr_distill.contracts import Batch
from sr_distill.data import imresize
from sr_distill.data.crops import ResidentBatches, StepBatches, _dihedral, step_loader


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
    resident = ResidentBatches(store, 5, 40, seed=1, device=torch.device("cpu"))
    for step in range(5):
        first, second = stored[step], resident[step].cut(resident[step].places)
        for a, b in ((first.lr, second.lr), (first.hr, second.hr), (first.teacher_sr["one"], second.teacher_sr["one"])):
            assert a.dtype == b.dtype == torch.uint8
            assert torch.equal(a, b)
            for crops in (a, b):
                assert crops.is_contiguous(memory_format=torch.channels_last)


def test_crops_are_aligned(store):
    """The stored teacher is LR repeated 4x4, so in every crop it must be the LR crop repeated."""
    batches = StepBatches(store, 8, 16, seed=3)
    for step in range(4):
        batch = batches[step]
        assert batch.lr.shape == (16, 3, 8, 8)
        assert batch.hr.shape == batch.teacher_sr["teacher"].shape == (16, 3, 32, 32)
        repeated = batch.lr.repeat_interleave(4, 2).repeat_interleave(4, 3)
        torch.testing.assert_close(batch.teacher_sr["teacher"], repeated)
        inside = (slice(None), slice(None), slice(3, 5), slice(3, 5))  # where the crop's border plays no part
        made = imresize(batch.hr.double(), 1 / 4)
        assert (made - batch.lr).abs()[inside].max() <= 1


def test_crops_depend_on_seed_and_step_alone(store):
    first, again, other = (StepBatches(store, 8, 4, seed=s) for s in (1, 1, 2))
    assert torch.equal(first[7].hr, again[7].hr)
    assert not torch.equal(first[7].hr, first[8].hr)
    assert not torch.equal(first[7].hr, other[7].hr)


def test_processes_share_the_batch(store):
    whole = StepBatches(store, 8, 4, seed=1)[5]
    shares = [StepBatches(store, 8, 4, 1, rank, 2)[5] for rank in range(2)]
    assert torch.equal(torch.cat([share.hr for share in shares]), whole.hr)


def test_all_turns_and_flips_occur(store):
    batches, seen = StepBatches(store, 8, 64, seed=1), set()
    base = np.arange(12).reshape(2, 2, 3)
    assert len({_dihedral(base, index).tobytes() for index in range(8)}) == 8
    for step in range(4):
        seen |= {crop.numpy().tobytes() for crop in batches[step].hr}
    assert len(seen) > 200


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_gives_the_steps_in_order(store, workers):
    batches = StepBatches(store, 8, 4, seed=1)
    loaded = list(step_loader(batches, 3, 8, workers))
    assert len(loaded) == 5
    for step, batch in zip(range(3, 8), loaded):
        assert torch.equal(batch.lr, batches[step].lr)


def test_workers_that_are_spawned_give_the_same_batches(store):
    batches = StepBatches(store, 8, 4, seed=1)
    loader = DataLoader(batches, sampler=range(2), batch_size=None, num_workers=2, multiprocessing_context="spawn")
    for step, batch in enumerate(loader):
        assert torch.equal(batch.hr, batches[step].hr)
        assert torch.equal(batch.teacher_sr["teacher"], batches[step].teacher_sr["teacher"])


def test_pinned_batches(store, monkeypatch):
    batch, pinned = StepBatches(store, 8, 4, seed=1)[0], []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda image: pinned.append(image) or image.clone())
    got = batch.pin_memory()
    assert len(pinned) == 3
    assert torch.equal(got.hr, batch.hr)
    assert got.teacher_sr.keys() == {"teacher"}
    assert step_loader(StepBatches(store, 8, 4, seed=1), 0, 1, 0, pin_memory=True).pin_memory
    assert not step_loader(StepBatches(store, 8, 4, seed=1), 0, 1, 0).pin_memory


def test_batch_to_float():
    batch = Batch(torch.tensor([[[[255]]]], dtype=torch.uint8), torch.zeros(1, 1, 2, 2, dtype=torch.uint8)).to(
        torch.device("cpu")
    )
    assert batch.lr.item() == 1.0
    assert batch.hr.dtype == torch.float32
    assert batch.teacher_sr == {}
