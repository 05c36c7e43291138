"""Tiles and file names: which pieces of an image the model is shown, and where a result is written."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

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
    files = [tmp_path / name for name in ("a.png", "a.jpg", "b.c.png", "deep/a.png")]
    expected = ["a_png_x3.png", "a_jpg_x3.png", "b.c_x3.png", "deep/a_x3.png"]
    assert output_paths(files, tmp_path, Path("out"), 3) == [Path("out") / name for name in expected]
    alone = tmp_path / "deep" / "a.png"
    assert output_paths([alone], alone, Path("out"), 4) == [Path("out/a_x4.png")]
