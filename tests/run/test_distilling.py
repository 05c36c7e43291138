"""Real steps with a teacher: every loss, matched features, stored outputs."""

from __future__ import annotations

import contextlib
import json

import pytest
import torch
import yaml

from sr_distill.errors import UserError
from sr_distill.losses import LOSSES
from sr_distill.models import build_model, load_model
from sr_distill.options import LossOptions, validate

from ..conftest import architecture
from .helpers import assert_same, last_state, launch, run_training, write_options

pytestmark = pytest.mark.run


FEATURES = [{"type": "l1"}, {"type": "fitnet", "weight": 0.1}, {"type": "attention_transfer", "weight": 10.0}]


def test_the_stored_teacher_equals_the_running_one_inside(work):
    """Stored outputs are of whole images and 8 bits, so they differ a little, and in the border of a crop."""
    values = []
    for cache in (True, False):
        options = write_options(work, teacher={"model": str(work / "teacher.safetensors"), "cache": cache})
        assert run_training(options, f"name=c{cache}", "train.total_steps=1", "train.log_every=1") == 0
        values.append(json.loads((work / f"out/c{cache}/metrics.jsonl").read_text().splitlines()[0]))
    assert values[0]["l1_sr_hr"] == values[1]["l1_sr_hr"]
    assert values[0]["l1_sr_teacher"] == pytest.approx(values[1]["l1_sr_teacher"], rel=0.1)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_trains(work, name, random_backbones):
    losses = []
    for change in ({"against": "hr"}, {"against": "teacher"}, {"on": "features"}):
        with contextlib.suppress(UserError):  # not every loss is for images, nor every one for maps
            validate(LossOptions, {"type": name, **change}, "test")
            losses.append({"type": name, **change})
    assert losses
    data = yaml.safe_load(write_options(work).read_text())["data"] | {"lr_size": 24}
    labels = [validate(LossOptions, loss, "test").label for loss in losses]
    if len(set(labels)) < len(labels):  # a loss on features alone takes "against: teacher" too
        losses = losses[-1:]
    assert run_training(write_options(work, losses=losses, data=data)) == 0
    line = json.loads((work / "out/run/metrics.jsonl").read_text().splitlines()[0])
    for loss in losses:
        assert line[validate(LossOptions, loss, "test").label] > 0


@pytest.mark.parametrize("cache", [True, False])
def test_feature_distillation_resumes_exactly_and_leaves_a_plain_student(work, cache, capsys):
    teacher = {"model": str(work / "teacher.safetensors"), "cache": cache}
    options = write_options(work, losses=FEATURES, teacher=teacher, features={"count": 2})
    assert run_training(options, "name=whole") == 0
    assert "compares features of body." in capsys.readouterr().out
    assert run_training(options, "name=cut", "train.keep_checkpoints=9") == 0
    (work / "out/cut/checkpoints/step_00000006.pt").unlink()
    assert run_training(options, "name=cut", "--resume") == 0
    assert_same(last_state(work, "whole"), last_state(work, "cut"))
    assert len(last_state(work, "whole")["adapters"]) == 4  # weight and bias of two
    assert set(load_model(work / "out/whole/student.safetensors").net.state_dict()) == set(
        load_model(work / "out/whole/initial.safetensors").net.state_dict()
    )


@pytest.mark.parametrize("cache", [True, False])
def test_a_self_ensembled_teacher_and_scheduled_weights(work, cache):
    losses = [
        {"type": "l1", "schedule": {"stop": 4}},
        {"type": "l1", "against": "teacher", "weight": 2.0, "schedule": {"start": 2}},
        {"type": "fitnet", "weight": 0.1},
    ]
    teacher = {"model": str(work / "teacher.safetensors"), "self_ensemble": True, "cache": cache}
    assert run_training(write_options(work, losses=losses, teacher=teacher)) == 0
    lines = [json.loads(line) for line in (work / "out/run/metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["kind"] == "train"]
    weights = [(line["step"], line["weight_l1_sr_hr"], line["weight_l1_sr_teacher"]) for line in train]
    assert weights == [(2, 1.0, 0.0), (3, 1.0, 2.0), (4, 1.0, 2.0), (6, 0.0, 2.0)]
    for line, (_, first, second) in zip(train, weights):
        total = first * line["l1_sr_hr"] + second * line["l1_sr_teacher"] + 0.1 * line["fitnet_features"]
        assert line["total"] == pytest.approx(total, rel=1e-4)


def test_adapters_are_trained_alike_in_all_processes(work):
    options = write_options(work, losses=FEATURES, features={"count": 2})
    for processes in (1, 2):
        done = launch(options, processes, f"name=f{processes}", "train.total_steps=1", "train.checkpoint_every=1")
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = ([s["exp_avg"] for s in last_state(work, f"f{n}")["optimizer"]["state"].values()] for n in (1, 2))
    assert len(one) > len(list(build_model(architecture(type="mobile_sr", num_feat=8, num_block=1), 2).parameters()))
    for first, second in zip(one, two):
        torch.testing.assert_close(first, second, atol=1e-7, rtol=1e-3)
