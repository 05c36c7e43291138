"""What all tests share."""

from __future__ import annotations

import functools
import os
import shutil
import signal
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from sr_distill.contracts import Batch, Prediction
from sr_distill.data.embedded import training_photos
from sr_distill.data.images import read_rgb
from sr_distill.features import Adapter, FeaturePair, TapPoint, backbones
from sr_distill.files import DATA_ROOT_VARIABLE
from sr_distill.losses import MatchedMaps
from sr_distill.models import SRModel, Teacher
from sr_distill.options import ArchitectureOptions, LossOptions, validate
from sr_distill.options.sections import FeatureOptions
from sr_distill.registry import ARCHITECTURES, LOSSES, METRICS, STUDENTS, TEACHERS
from sr_distill.train import build_task, tap_teachers

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(autouse=True)
def _registries_as_they_were():
    """What a test's plugins registered is gone after it."""
    before = [(registry, dict(registry.items())) for registry in (STUDENTS, TEACHERS, METRICS, LOSSES)]
    yield
    for registry, entries in before:
        registry._entries = entries


@pytest.fixture
def data_root() -> Path:
    """The folder of benchmark data and published checkpoints; tests marked ``data`` are skipped without it."""
    value = os.environ.get(DATA_ROOT_VARIABLE)
    if not value:
        pytest.skip(f"{DATA_ROOT_VARIABLE} is not set")
    return Path(value)


@pytest.fixture
def no_data(monkeypatch, tmp_path):
    """No data root, no pretrained weights in torchvision's cache, no network."""
    monkeypatch.delenv(DATA_ROOT_VARIABLE, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))
    monkeypatch.setattr("torch.hub.download_url_to_file", _refuse)
    for cached in (backbones.vgg19_features, backbones.lpips_network):
        cached.cache_clear()
    yield
    for cached in (backbones.vgg19_features, backbones.lpips_network):
        cached.cache_clear()


@functools.cache
def _random_models():
    return {name: _random_features(name) for name in ("vgg19", "alexnet", "vgg16", "squeezenet1_1")}


def _random_features(name):
    """Without a classifier: it has most of the weights, drawing them takes seconds, and nothing looks at them."""
    with torch.device("meta"):
        model = getattr(torchvision.models, name)(weights=None)
    model.classifier = torch.nn.Identity()
    model = model.to_empty(device="cpu").eval()
    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            torch.nn.init.zeros_(layer.bias)
    return model


def vgg_mean(features, index):
    """The mean of a map of VGG19 after ReLU on the photograph by which its maps are normalised."""
    photo = torch.from_numpy(read_rgb(training_photos()[0])[:256, :256].copy()).permute(2, 0, 1)[None] / 255
    normalise = torchvision.transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    with torch.no_grad():
        return features[: index + 1](normalise(photo)).relu().mean()


@pytest.fixture
def random_backbones(monkeypatch):
    """VGG19 and LPIPS backbones with random weights: their mathematics can be tested on every machine."""
    models = _random_models()

    def weights(name, download=True):
        state = models[name].state_dict().items()
        return {k.removeprefix("features."): v for k, v in state if k.startswith("features.")}, "random weights"

    monkeypatch.setattr(backbones, "_feature_weights", weights)
    backbones.vgg19_features.cache_clear()
    backbones.lpips_network.cache_clear()
    yield models
    backbones.vgg19_features.cache_clear()
    backbones.lpips_network.cache_clear()


@pytest.fixture
def browser(tmp_path):
    """Headless Chromium, where it is installed; it reaches this machine alone, also from workers, which its log leaves out."""
    chromium = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("chromium and chromedriver are not installed (apt-get install chromium chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (tests/requirements.txt)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--window-size=1200,2000",
                 "--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
                 "--disable-component-update", "--disable-sync",
                 f"--user-data-dir={tmp_path / 'profile'}"):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield driver
    driver.quit()


def _refuse(*args, **kwargs):
    raise OSError("no network")


def architecture(**tree):
    """Options of a network from plain values."""
    return validate(ArchitectureOptions, tree, "test")


# Small variants of every network, so that tests stay fast. A new network without an entry here is tested with its defaults.
SMALL = {
    "bsrn": {"num_feat": 8, "num_block": 2},
    "carn_m": {"num_feat": 8, "groups": 2},
    "compact": {"num_feat": 8, "num_block": 2},
    "ecbsr": {"num_feat": 8, "num_block": 2},
    "edsr": {"num_feat": 8, "num_block": 2},
    "efdn": {"num_feat": 8},
    "hit_srf": {"embed_dim": 32, "depths": [3], "num_heads": [2]},
    "imdn": {"num_feat": 16, "num_block": 2},
    "mobile_sr": {"num_feat": 8, "num_block": 2},
    "msrresnet": {"num_feat": 8, "num_block": 2},
    "pan": {"num_feat": 8, "num_up_feat": 6, "num_block": 2},
    "rcan": {"num_feat": 16, "num_group": 1, "num_block": 2},
    "rfdn": {"num_feat": 8, "num_block": 2},
    "rlfn": {"num_feat": 8, "num_block": 2},
    "rrdbnet": {"num_feat": 8, "num_block": 1, "num_grow_ch": 4},
    "swinir": {"embed_dim": 8, "depths": [2], "num_heads": [2], "window_size": 4},
}


def small(name: str, **tree):
    """Options of a small network of this type."""
    return architecture(type=name, **SMALL.get(name, {}) | tree)


def heed_ctrl_c() -> None:
    """For a child process (``preexec_fn``): SIGINT interrupts it, also where tests run in the background and it would be ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def terms(*trees: dict) -> list:
    """Terms of an objective from plain values."""
    return [validate(LossOptions, tree, "test") for tree in trees]


def in_colors(names, *wanted: str) -> list:
    """Parameters (name, options) of networks in each of the wanted colours that they have; without an option for it a network is for RGB."""
    params = []
    for name in names:
        field = ARCHITECTURES[name].model_fields.get("color")
        for color in get_args(field.annotation) if field else ("rgb",):
            if color in wanted:
                params.append(pytest.param(name, {"color": color} if field else {}, id=f"{name}-{color}"))
    return params


class Objective:
    """Some losses over some networks, as a training step runs them."""

    def __init__(self, losses, student, teacher=None, *, peers=None, weights=None, seed=0, **features):
        teachers = {} if teacher is None else {"teacher": teacher} if isinstance(teacher, SRModel) else teacher
        students = {"student": student, **(peers or {})}
        frozen = {name: Teacher(model) for name, model in teachers.items()}
        options = validate(FeatureOptions, features, "test")
        self.task = build_task(students, frozen, terms(*losses), lambda name: options, weights, seed)
        self.teachers = tap_teachers(self.task, frozen)
        self.student = student

    def given(self, batch: Batch, weights=None) -> dict:
        """What the teachers give in a step."""
        needs = self.task.needs([t.loss.weight for t in self.task.terms] if weights is None else weights)
        return {
            n: teacher(batch.lr, needs[n], batch.teacher_sr.get(n))
            for n, teacher in self.teachers.items()
            if n in needs
        }

    def __call__(self, batch: Batch, weights=None):
        """Total and terms."""
        return self.task(batch, self.given(batch, weights), weights)

    @property
    def pairs(self) -> list:
        """The pairs of the only link."""
        (pairs,) = self.task.pairs.values()
        return pairs

    @property
    def adapters(self):
        """The adapters of the only link."""
        (adapters,) = self.task.adapters.values()
        return adapters


IMAGE_PAIR = FeaturePair(*[TapPoint("image", 3, 1.0, "Conv2d")] * 2, "none")
"""For losses on maps that are given two images."""


def images_as_maps(student: torch.Tensor, teacher: torch.Tensor) -> MatchedMaps:
    """Two images as the maps of a pair."""
    return MatchedMaps(IMAGE_PAIR, student, teacher, Adapter(IMAGE_PAIR), Prediction(None))


def natural_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth coloured picture with noise and an edge, uint8 (H, W, 3)."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    image = np.stack([127 + 90 * np.sin(x / 7 + c) * np.cos(y / 11 - c) for c in range(3)], axis=2)
    image[:, width // 2 :] += 25
    return (image + generator.normal(0, 6, image.shape)).clip(0, 255).astype(np.uint8)


def write_image(path: Path, pixels: np.ndarray) -> Path:
    """Write pixels as an image file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path
