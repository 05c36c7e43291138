"""Tiles: which pieces of an image the model is shown, what becomes of them, and what happens when memory does not suffice."""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from sr_distill.errors import ImageError
from sr_distill.infer import Upscaler, upscale
from sr_distill.infer.rows import Rows, Window, rows_of
from sr_distill.infer.spans import batches, spans
from sr_distill.models import ModelSpec, SRModel, bicubic_model, build_model

from ..conftest import natural_image, small

CPU = torch.device("cpu")


class _Repeat(nn.Module):
    """Repeats every pixel, and remembers the sizes it was shown."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(tuple(x.shape[-2:]))
        return x.repeat_interleave(2, -2).repeat_interleave(2, -1)


@pytest.fixture
def upscaled(monkeypatch):
    """Sizes that a network is shown whose tiles have 3 pixels of context."""
    monkeypatch.setattr(sys.modules["sr_distill.infer.upscale"], "context_of", lambda model: (3, True))
    return _upscaled


def _upscaled(height, width, **settings):
    model = SRModel(_Repeat(), ModelSpec(name="repeat", scale=2)).eval()
    lr = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    sr = upscale(model, lr, CPU, **settings)
    assert torch.equal(sr, lr.repeat_interleave(2, 1).repeat_interleave(2, 2))
    return model.net.seen


def test_each_tile_is_shown_with_its_context(upscaled):
    # Rows 0-8, 9-16, 17-24 and columns 0-9, 10-19, each with 3 pixels more where there are any.
    assert upscaled(25, 20, tile=10) == [(12, 13), (12, 13), (14, 13), (14, 13), (11, 13), (11, 13)]


@pytest.mark.parametrize(("side", "pieces"), [(16, 1), (17, 4)])
def test_what_a_tile_and_its_context_would_hold_is_not_cut(upscaled, side, pieces):
    assert len(upscaled(side, side, tile=10)) == pieces


def test_no_tiles_at_all(upscaled):
    assert upscaled(30, 40, tile=0) == [(30, 40)]


def test_tiles_unless_told_otherwise(upscaled):
    assert upscaled(262, 2) == [(262, 2)]
    assert upscaled(263, 2) == [(135, 2), (134, 2)]


def test_rows_of_tiles_are_lower_where_an_image_is_very_wide(upscaled, monkeypatch):
    monkeypatch.setattr(sys.modules["sr_distill.infer.upscale"], "_BAND_BYTES", 300 * 3 * 4 * 40)
    assert upscaled(100, 300, tile=100)[0] == (34 + 3, 100 + 3)


@pytest.mark.parametrize("length", [1, 9, 10, 17, 100, 257])
@pytest.mark.parametrize("multiple", [1, 4])
@pytest.mark.parametrize("fade", [0, 2])
def test_pieces_cover_a_side_and_their_weights_add_up(length, multiple, fade):
    pieces, total = spans(length, 9, 5, multiple, fade), torch.zeros(length * 3)
    assert [piece.start for piece in pieces] == [0, *(piece.stop for piece in pieces[:-1])]
    assert pieces[-1].stop == length
    for piece in pieces:
        assert piece.first % multiple == 0
        assert piece.first <= max(0, piece.start - 5)
        assert piece.last >= min(length, piece.stop + 5)
        kept, target = piece.kept(3), piece.target(3)
        assert kept.stop - kept.start == target.stop - target.start == len(piece.weights(3))
        assert kept.start + piece.first * 3 == target.start
        total[target] += piece.weights(3)
    torch.testing.assert_close(total, torch.ones(length * 3))


def test_batches_are_of_one_size():
    groups = list(batches(spans(100, 10, 3), 3))
    assert [len(group) for group in groups] == [1, 3, 3, 2, 1]
    assert all(len({piece.last - piece.first for piece in group}) == 1 for group in groups)


def test_tiles_of_a_network_that_sees_the_whole_image_are_blended():
    """Tiles that differ by a constant meet in a ramp, not in a step."""

    class Brighter(nn.Module):
        def forward(self, x):
            self.calls = getattr(self, "calls", 0) + 1
            return (x * 0 + 0.1 * (self.calls % 2) + 0.4).repeat_interleave(2, -1).repeat_interleave(2, -2)

    model = SRModel(Brighter(), ModelSpec(name="brighter", scale=2)).eval()
    sys.modules["sr_distill.models.receptive_field"].declare(model, None)
    flat = torch.full((3, 40, 400), 0.5)
    sr = upscale(model, flat, CPU, tile=100, say=lambda text: None)
    assert float((sr[0, 0, 1:] - sr[0, 0, :-1]).abs().max()) < 0.1 / 90
    assert float(sr.max() - sr.min()) > 0.09
    assert torch.equal(sr[:, :1].expand_as(sr), sr)


def _hungry(most, error=None):
    """Bicubic that has memory for so many pixels, and remembers what it was asked for."""
    model = bicubic_model(2)
    inner, model.net.tried = model.net.forward, []

    def forward(x):
        model.net.tried.append(tuple(x.shape[-2:]))
        if x.shape[-1] * x.shape[-2] > most:
            raise error or torch.OutOfMemoryError("CUDA out of memory.")
        return inner(x)

    model.net.forward = forward
    return model


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory."), MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
    ids=["cuda", "python", "cpu"],
)  # fmt: skip
def test_a_tile_that_does_not_fit_is_cut_in_two(error, monkeypatch):
    monkeypatch.setattr(sys.modules["sr_distill.infer.upscale"], "context_of", lambda model: (4, True))
    lr = torch.from_numpy(natural_image(150, 170).transpose(2, 0, 1).copy())
    expected = upscale(bicubic_model(2), lr, CPU, 0)
    model = _hungry(5000, error)
    assert torch.equal(upscale(model, lr, CPU, 100), expected)
    failed = [size for size in model.net.tried if size[0] * size[1] > 5000]
    assert len(failed) == 1  # the same size is not tried again


def test_what_does_not_fit_at_any_size_is_an_error(monkeypatch):
    monkeypatch.setattr(sys.modules["sr_distill.infer.upscale"], "context_of", lambda model: (4, True))
    lr = torch.zeros(3, 150, 170, dtype=torch.uint8)
    with pytest.raises(torch.OutOfMemoryError):
        upscale(_hungry(10), lr, CPU, 100)
    with pytest.raises(torch.OutOfMemoryError):  # never cut: not here either
        upscale(_hungry(5000), lr, CPU, 0)


def test_a_batch_that_does_not_fit_is_computed_one_by_one(monkeypatch):
    module = sys.modules["sr_distill.infer.upscale"]
    monkeypatch.setattr(module, "context_of", lambda model: (4, True))
    lr = torch.from_numpy(natural_image(60, 300).transpose(2, 0, 1).copy())
    model = bicubic_model(2)
    upscaler = Upscaler(model, CPU, 50, "fp32")
    runner, tried = upscaler._runner, []
    one = runner._finite

    def finite(batch):
        tried.append(len(batch))
        if len(batch) > 1:
            raise MemoryError
        return one(batch)

    monkeypatch.setattr(runner, "_finite", finite)
    monkeypatch.setattr(module, "batches", lambda across, most: batches(across, 3))
    sr = upscaler(rows_of(lr.permute(1, 2, 0).numpy())).whole()
    assert torch.equal(torch.from_numpy(sr).permute(2, 0, 1), upscale(model, lr, CPU, 0))
    assert tried.count(3) == 1
    assert tried.count(1) >= 6


def test_low_precision_that_overflows_is_computed_again():
    class Large(nn.Module):
        def forward(self, x):
            return torch.nn.functional.conv2d(x * 3e4, torch.eye(3)[:, :, None, None].to(x) * 3e4) / 9e8

    model = SRModel(Large(), ModelSpec("large", 1)).eval()
    lr = torch.rand(3, 8, 8)
    torch.testing.assert_close(upscale(model, lr, CPU, precision="fp16"), lr)
    rounded = upscale(build_model(small("mobile_sr"), 2), lr, CPU, precision="bf16")
    exact = upscale(build_model(small("mobile_sr"), 2), lr, CPU)
    assert 0 < float((rounded - exact).abs().max())


def test_an_output_that_is_no_number_stops():
    class Broken(nn.Module):
        def forward(self, x):
            return x * torch.nan

    with pytest.raises(ImageError, match="broken gives values that are not finite"):
        upscale(SRModel(Broken(), ModelSpec("broken", 1)), torch.rand(3, 8, 8), CPU)


def test_a_window_forgets_what_is_above():
    pixels = np.arange(1000, dtype=np.uint8)[:, None, None].repeat(3, 2)
    alive, most = [], 0

    def bands():
        for row in range(0, 1000, 10):
            alive.append(row)
            yield pixels[row : row + 10].copy()

    window = Window(Rows(1000, 1, 3, np.dtype(np.uint8), bands))
    for first, stop in ((0, 5), (0, 30), (25, 60), (300, 301), (290 + 15, 400), (990, 1000)):
        np.testing.assert_array_equal(window.rows(first, stop), pixels[first:stop])
        most = max(most, sum(len(band) for band in window._held))
    assert most <= 110


def test_rows_come_as_they_are_computed():
    """The first band of the result is there before the last rows of the image were asked for."""
    taken = []

    def bands():
        for row in range(0, 400, 20):
            taken.append(row)
            yield np.zeros((20, 30, 3), np.uint8)

    large = Upscaler(bicubic_model(2), CPU, 50)(Rows(400, 30, 3, np.dtype(np.uint8), bands))
    first = next(large.bands())
    assert first.shape[1:] == (60, 3)
    assert len(taken) < 8


def test_progress_adds_up_to_the_image():
    done = []
    image = rows_of(natural_image(61, 90))
    Upscaler(bicubic_model(2), CPU, 20)(image, done=done.append).whole()
    assert sum(done) == 61 * 90
    assert len(done) > 5


def test_networks_of_others_are_called_one_at_a_time():
    """What another runtime or package runs may keep something of a call until the next one."""

    class Once(nn.Module):
        inside = most = 0

        def forward(self, x):
            self.inside += 1
            self.most = max(self.most, self.inside)
            time.sleep(0.01)
            self.inside -= 1
            return x.repeat_interleave(2, -2).repeat_interleave(2, -1)

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        model = SRModel(Once(), ModelSpec(name="once", scale=2)).eval()
        upscaler = Upscaler(model, CPU, 16)
        with ThreadPoolExecutor(3) as pool:
            images = [rows_of(natural_image(40, 50)) for _ in range(3)]
            results = list(pool.map(lambda image: upscaler(image).whole(), images))
        assert model.net.most == 1
        own = Upscaler(build_model(small("mobile_sr"), 2).eval(), CPU, 16)
        assert own.threads == 3
    finally:
        torch.set_num_threads(before)
    for result in results:
        np.testing.assert_array_equal(result, natural_image(40, 50).repeat(2, 0).repeat(2, 1))


def test_threads_do_not_change_the_result():
    model, image = build_model(small("mobile_sr"), 2).eval(), rows_of(natural_image(60, 200))
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 4):
            torch.set_num_threads(threads)
            results.append(Upscaler(model, CPU, 16)(image, np.float32).whole())
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    np.testing.assert_allclose(*results, atol=1e-6)
