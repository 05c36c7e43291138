"""Photos that are stored as pairs."""

from __future__ import annotations

import pytest

from sr_distill.data import open_pairs, packed
from sr_distill.data.images import read_rgb
from sr_distill.options.sections import SourceOptions

from ..conftest import natural_image, write_image


def photos(folder, count=3):
    """A source of so many photos of different heights."""
    for index in range(count):
        write_image(folder / "photos" / f"p{index}.png", natural_image(70 + index, 83, seed=index))
    return SourceOptions(hr=str(folder / "photos"))


@pytest.fixture
def decoded(monkeypatch):
    """The names of the files that are decoded, in order."""
    names = []
    monkeypatch.setattr(packed, "read_rgb", lambda path: names.append(path.name) or read_rgb(path))
    return names


def repeating(scale, seen=None):
    """A teacher that repeats pixels; ``seen`` gets the shapes of what it saw."""

    def upscale(lr):
        if seen is not None:
            seen.append(lr.shape)
        return lr.repeat_interleave(scale, 1).repeat_interleave(scale, 2)

    return upscale


@pytest.fixture
def store(tmp_path):
    store = open_pairs([photos(tmp_path)], 4, 8, tmp_path / "cache", "stop")
    store.add_teacher("teacher", "x", repeating(4))
    return store
