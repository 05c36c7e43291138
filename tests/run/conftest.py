"""A folder in which a run can be started."""

from __future__ import annotations

import pytest

from sr_distill.models import build_model, save_model

from ..conftest import natural_image, small, write_image


@pytest.fixture
def work(tmp_path):
    """A folder with photos, a validation set, a teacher, and options that use them."""
    for index in range(3):
        write_image(tmp_path / "photos" / f"{index}.png", natural_image(80, 90, seed=index))
    write_image(tmp_path / "set/HR/v.png", natural_image(48, 56, seed=9))
    save_model(build_model(small("edsr"), 2), tmp_path / "teacher.safetensors")
    return tmp_path
