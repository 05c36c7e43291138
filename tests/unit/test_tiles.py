"""Tiles and file names: which pieces of an image the model is shown, and where a result is written."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from sr_distill.errors import UserError
from sr_distill.infer import output_paths, upscale
from sr_distill.models import ModelSpec, SRModel

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
    # Rows 0-9, 10-19, 20-24 and columns 0-9, 10-19, each with 3 pixels more where there are any.
    assert upscaled(25, 20, tile=10) == [(13, 13), (13, 13), (16, 13), (16, 13), (8, 13), (8, 13)]


@pytest.mark.parametrize(("side", "pieces"), [(16, 1), (17, 4)])
def test_what_a_tile_and_its_context_would_hold_is_not_cut(upscaled, side, pieces):
    assert len(upscaled(side, side, tile=10)) == pieces


def test_no_tiles_at_all(upscaled):
    assert upscaled(30, 40, tile=0) == [(30, 40)]


def test_tiles_unless_told_otherwise(upscaled):
    assert upscaled(262, 2) == [(262, 2)]
    assert upscaled(263, 2) == [(259, 2), (10, 2)]


def test_names_of_results(tmp_path):
    out = Path("out")
    names = {tmp_path / name: Path(name) for name in ("a.png", "a.jpg", "b.c.png", "deep/a.png")}
    expected = ["a_png_x3.png", "a_jpg_x3.png", "b.c_x3.png", "deep/a_x3.png"]
    assert list(output_paths(names, out, 3).values()) == [out / name for name in expected]
    from_two_folders = {Path("one/a.png"): Path("a.png"), Path("two/a.png"): Path("a.png")}
    assert list(output_paths(from_two_folders, out, 4).values()) == [out / "a_png_x4.png", out / "a_png_x4_2.png"]


def test_a_result_may_be_named(tmp_path):
    alone = {tmp_path / "a.jpg": Path("a.jpg")}
    assert output_paths(alone, tmp_path / "large.png", 4) == {tmp_path / "a.jpg": tmp_path / "large.png"}
    with pytest.raises(UserError, match=r"one file, and there are 2 images"):
        output_paths({**alone, tmp_path / "b.jpg": Path("b.jpg")}, tmp_path / "large.png", 4)
    with pytest.raises(UserError, match="results are PNG files"):
        output_paths(alone, tmp_path / "large.jpg", 4)
    itself = {tmp_path / "a.png": Path("a.png")}
    with pytest.raises(UserError, match="is the image itself"):
        output_paths(itself, tmp_path / "a.png", 4)


def test_what_an_earlier_run_made_in_the_same_folder_is_left_alone(tmp_path):
    for name in ("a.png", "a_x4.png", "b_x4.png"):
        (tmp_path / name).touch()
    names = {tmp_path / name: Path(name) for name in ("a.png", "a_x4.png", "b_x4.png")}
    assert list(output_paths(names, tmp_path, 4)) == [tmp_path / "a.png", tmp_path / "b_x4.png"]
    assert len(output_paths(names, tmp_path / "out", 4)) == 3
