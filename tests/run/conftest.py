"""A folder in which a run can be started."""

from __future__ import annotations

import pytest
import torchvision
from safetensors.torch import save_file

from sr_distill.files import DATA_ROOT_VARIABLE
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


@pytest.fixture
def random_backbones_on_disk(work, monkeypatch):
    """A data root with random weights for LPIPS-squeeze and VGG19, for tests that start processes of their own."""
    (work / "backbones").mkdir()
    for name in ("squeezenet1_1", "vgg19"):
        features = getattr(torchvision.models, name)(weights=None).features.state_dict()
        save_file({f"features.{k}": v for k, v in features.items()}, work / f"backbones/{name}_features.safetensors")
    monkeypatch.setenv(DATA_ROOT_VARIABLE, str(work))
