"""Every option of a run changes what it says: weights, files, log lines; those that must not change the result do not."""

from __future__ import annotations

import json

import pytest
import torch
import yaml

from sr_distill.models import build_model, save_model
from sr_distill.options import RunOptions
from sr_distill.options.sections import (
    DataOptions,
    SourceOptions,
    TeacherOptions,
    TrainOptions,
    ValidationOptions,
)
from sr_distill.train.checkpoint import load_checkpoint

from ..conftest import natural_image, small, write_image
from .helpers import run_training, trust_teachers, write_options

pytestmark = pytest.mark.run

COMPACT = {"type": "compact", "num_feat": 8, "num_block": 1}

# key path of a changed option, and its other value; {work} stands for the folder of the test.
CHANGES = {
    "seed": 5,
    "scale": 3,
    "student": COMPACT,
    "init_from": "{work}/start.safetensors",
    "peers": [COMPACT],
    "teacher": None,
    "teachers": [
        {"name": "a", "model": "{work}/teacher.safetensors"},
        {"name": "b", "model": "{work}/other.safetensors"},
    ],
    "teacher.model": "{work}/other.safetensors",
    "teacher.self_ensemble": True,
    "teacher.cache": False,
    "teacher.check": True,
    "teacher.architecture": COMPACT,
    "data.train.0.hr": "{work}/photos2",
    "data.train.0.lr": "{work}/lr",
    "data.train.0.downscale": 2,
    "data.train": [{"hr": "{work}/photos"}, {"hr": "{work}/photos2"}],
    "data.lr_size": 12,
    "data.batch_size": 2,
    "data.on_unreadable": "skip",
    "data.device": "cuda",  # refused where there is none; tests/gpu has what it does
    "losses.0.weight": 0.3,
    "features.count": 1,
    "optimizer.learning_rate": 1e-4,
    "schedule.warmup": 3,
    "train.total_steps": 5,
    "train.cuda_graph": True,  # refused as well; test_recorded.py and tests/gpu have what it does
    "train.ema": 0.05,  # in the first steps the average follows faster than it says
    "train.precision": "bf16",
    "train.log_every": 1,
    "train.checkpoint_every": 2,
    "train.keep_checkpoints": 1,
    "train.shares_every": 5,
    "validation.sets": ["{work}/set2"],
    "validation.every": 2,
    "validation.metrics": ["psnr_rgb"],
    "validation.samples": 0,
    "validation": None,
}
SAME_RESULT = {"device": "auto", "data.workers": 1, "data.cache_dir": "{work}/elsewhere", "train.channels_last": False}
ELSEWHERE = {
    "name",
    "output_dir",
    "plugins",
    "train.compile",
    "train.threads",
    "data",
    "losses",
    "features",
    "optimizer",
    "schedule",
    "train",
    "quantization",
    "validation.best_by",
}
"""Whole sections, of which the fields are here, and fields whose effect other tests look at."""


@pytest.fixture
def rich(work):
    """More to choose from, and one image that cannot be read."""
    for index in range(2):
        write_image(work / f"photos2/{index}.png", natural_image(90, 80, seed=index + 20))
    for index in range(3):
        write_image(work / f"lr/{index}.png", natural_image(40, 45, seed=index + 50))
    write_image(work / "set2/HR/w.png", natural_image(56, 48, seed=10))
    save_model(build_model(small("edsr"), 2), work / "other.safetensors")
    save_model(build_model(small("mobile_sr"), 2), work / "start.safetensors")
    return work


def _set(tree, path, value):
    *parents, last = path.split(".")
    for part in parents:
        tree = tree[int(part)] if isinstance(tree, list) else tree.setdefault(part, {})
    tree[int(last) if isinstance(tree, list) else last] = value


def _fingerprint(work, path=None, value=None):
    """What a run leaves, without times; None where it is refused."""
    tree = yaml.safe_load(write_options(work, student=small("mobile_sr").model_dump()).read_text())
    if path in ("teachers", "peers", "teacher"):
        tree["losses"] = {
            "peers": [{"type": "l1"}, {"type": "l1", "against": "peers"}],
            "teacher": [{"type": "l1"}],
        }.get(path, tree["losses"])
        tree["teacher"] = tree["teacher"] if path == "none" else None
    if path is not None:
        _set(tree, path, json.loads(json.dumps(value).replace("{work}", str(work))))
    trust_teachers(tree)
    tree["name"] = f"run_{path}".replace(".", "_")
    tree["optimizer"] = {"type": "adam", **tree.get("optimizer", {})}  # which does not make much of rounding
    options = work / "options.yml"
    options.write_text(yaml.safe_dump({key: value for key, value in tree.items() if value is not None}))
    if run_training(options) != 0:
        return None
    out = work / "out" / tree["name"]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("images_per_second", None)
    checkpoints = sorted((out / "checkpoints").iterdir())
    state = load_checkpoint(checkpoints[-1])
    weights = [v for part in ("students", "averages") for m in state[part].values() for v in m.values()]
    return lines, [p.name for p in checkpoints], sorted(p.name for p in out.iterdir()), weights


def _same(first, second, exactly=True):
    if first is None or second is None:
        return first is second
    if first[1:3] != second[1:3] or (exactly and first[0] != second[0]):
        return False
    pairs = list(zip(first[3], second[3]))
    close = torch.equal if exactly else (lambda a, b: torch.allclose(a, b, atol=1e-4))
    return len(first[3]) == len(second[3]) and all(a.shape == b.shape and close(a, b) for a, b in pairs)


@pytest.mark.parametrize("path", CHANGES)
def test_it_changes_something_or_is_refused(rich, path):
    if path == "data.on_unreadable":
        (rich / "photos/bad.png").write_text("text")
    assert not _same(_fingerprint(rich, path, CHANGES[path]), _fingerprint(rich))


@pytest.mark.parametrize("path", SAME_RESULT)
def test_it_does_not_change_the_result(rich, path):
    assert _same(_fingerprint(rich, path, SAME_RESULT[path]), _fingerprint(rich), exactly=path != "train.channels_last")


def test_every_option_is_looked_at():
    sections = {"": RunOptions, "teacher": TeacherOptions, "data": DataOptions, "data.train.0": SourceOptions}
    sections |= {"train": TrainOptions, "validation": ValidationOptions}
    fields = {f"{prefix}.{name}".lstrip(".") for prefix, cls in sections.items() for name in cls.model_fields}
    assert fields - ELSEWHERE <= CHANGES.keys() | SAME_RESULT.keys()
