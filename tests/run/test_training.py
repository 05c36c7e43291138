"""A few real training steps, through the command line as a user starts it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from sr_distill.cli import main
from sr_distill.errors import UserError
from sr_distill.losses import LOSSES
from sr_distill.models import STUDENTS, build_model, load_model, save_model
from sr_distill.options import LossOptions, validate
from sr_distill.train.checkpoint import latest_checkpoint, load_checkpoint

from ..conftest import ROOT, SMALL, architecture, natural_image, small, write_image
from ..unit.test_losses import random_backbones  # noqa: F401 - a fixture

pytestmark = pytest.mark.run


@pytest.fixture
def work(tmp_path):
    """A folder with photos, a validation set, a teacher, and options that use them."""
    for index in range(3):
        write_image(tmp_path / "photos" / f"{index}.png", natural_image(80, 90, seed=index))
    write_image(tmp_path / "set/HR/v.png", natural_image(48, 56, seed=9))
    save_model(build_model(small("edsr"), 2), tmp_path / "teacher.safetensors")
    return tmp_path


def _options(work: Path, **change) -> Path:
    tree = {
        "name": "run",
        "scale": 2,
        "device": "cpu",
        "output_dir": str(work / "out"),
        "student": {"type": "mobile_sr", "num_feat": 8, "num_block": 1},
        "teacher": {"model": str(work / "teacher.safetensors")},
        "data": {
            "train": [{"hr": str(work / "photos")}],
            "lr_size": 16,
            "batch_size": 4,
            "cache_dir": str(work / "cache"),
        },
        "losses": [{"type": "l1"}, {"type": "l1", "against": "teacher", "weight": 0.5}],
        "train": {"total_steps": 6, "log_every": 2, "checkpoint_every": 3},
        "validation": {"set": str(work / "set"), "every": 3},
    } | change
    path = work / "options.yml"
    path.write_text(yaml.safe_dump({key: value for key, value in tree.items() if value is not None}))
    return path


def _train(path: Path, *arguments: str) -> int:
    return main(["train", "-opt", str(path), *arguments])


def _state(work: Path, name: str = "run") -> dict:
    return load_checkpoint(latest_checkpoint(work / "out" / name / "checkpoints"))


def _assert_same(first, second, exact=True):
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            _assert_same(first[key], second[key], exact)
    elif isinstance(first, torch.Tensor):
        torch.testing.assert_close(first, second, **({"atol": 0, "rtol": 0} if exact else {"atol": 1e-6, "rtol": 1e-4}))
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second)
        for a, b in zip(first, second):
            _assert_same(a, b, exact)
    else:
        assert first == second


def test_a_run_leaves_what_it_promises(work, capsys):
    assert _train(_options(work)) == 0
    out = work / "out/run"
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in train] == [2, 3, 4, 6]
    assert {"total", "l1_sr_hr", "l1_sr_teacher", "learning_rate", "images_per_second"} <= train[0].keys()
    assert train[0]["total"] == pytest.approx(train[0]["l1_sr_hr"] + 0.5 * train[0]["l1_sr_teacher"], rel=1e-5)
    assert [line["step"] for line in lines if line["kind"] == "validation"] == [3, 6]
    assert {"psnr_y_b2", "ssim_y_b2"} <= lines[-1].keys()
    assert list((out / "tensorboard").glob("events.*"))
    assert yaml.safe_load((out / "options.yml").read_text())["optimizer"]["learning_rate"] == 1e-3
    student = load_model(out / "student.safetensors")
    assert student.spec.scale == 2
    best = max(line["psnr_y_b2"] for line in lines if line["kind"] == "validation")
    from sr_distill.evaluate import evaluate_set, open_set

    measured = evaluate_set(student, open_set(str(work / "set"), 2, None), torch.device("cpu")).mean("psnr")
    assert measured == pytest.approx(best, abs=1e-4)
    assert load_model(out / "initial.safetensors").spec == student.spec
    assert "The student:" in capsys.readouterr().out


@pytest.mark.parametrize("cache", [True, False])
def test_resume_equals_uninterrupted(work, cache):
    teacher = {"model": str(work / "teacher.safetensors"), "cache": cache}
    options = _options(work, teacher=teacher, optimizer={"clip_grad_norm": 0.5})
    assert _train(options, "name=whole") == 0
    assert _train(options, "name=parts", "train.checkpoint_every=2", "train.keep_checkpoints=9") == 0
    checkpoints = work / "out/parts/checkpoints"
    (checkpoints / "step_00000006.pt").unlink()
    (checkpoints / "step_00000004.pt").unlink()
    assert _train(options, "name=parts", "--resume") == 0
    _assert_same(_state(work, "whole"), _state(work, "parts"))
    first, second = (
        [json.loads(line) for line in (work / "out" / n / "metrics.jsonl").read_text().splitlines()]
        for n in ("whole", "parts")
    )
    assert [line["psnr_y_b2"] for line in first if "psnr_y_b2" in line] == [
        line["psnr_y_b2"] for line in second if "psnr_y_b2" in line
    ]
    assert _train(options, "name=parts", "--resume") == 0  # nothing left to do


def test_the_stored_teacher_equals_the_running_one_inside(work):
    """Stored outputs are of whole images and 8 bits, so they differ a little, and in the border of a crop."""
    values = []
    for cache in (True, False):
        options = _options(work, teacher={"model": str(work / "teacher.safetensors"), "cache": cache})
        assert _train(options, f"name=c{cache}", "train.total_steps=1", "train.log_every=1") == 0
        values.append(json.loads((work / f"out/c{cache}/metrics.jsonl").read_text().splitlines()[0]))
    assert values[0]["l1_sr_hr"] == values[1]["l1_sr_hr"]
    assert values[0]["l1_sr_teacher"] == pytest.approx(values[1]["l1_sr_teacher"], rel=0.1)


def _launch(options: Path, processes: int, *overrides: str) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={processes}",
        "scripts/train.py",
    ]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, "-opt", str(options), *overrides], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300
    )


def test_two_processes_equal_one(work):
    options = _options(work)
    for processes in (1, 2):
        done = _launch(options, processes, f"name=p{processes}", "train.total_steps=1", "train.checkpoint_every=1")
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = _state(work, "p1"), _state(work, "p2")
    # After one step of Adam the first moment is the gradient itself, up to a factor: a wrong scale cannot hide in it.
    gradients = [
        torch.cat([s["exp_avg"].flatten() for s in state["optimizer"]["state"].values()]) for state in (one, two)
    ]
    assert gradients[0].abs().max() > 1e-5
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-7, rtol=1e-4)
    lines = [json.loads((work / f"out/p{n}/metrics.jsonl").read_text().splitlines()[0]) for n in (1, 2)]
    assert lines[0]["total"] == pytest.approx(lines[1]["total"], rel=1e-5)


def test_a_batch_that_cannot_be_shared(work):
    done = _launch(_options(work), 2, "data.batch_size=3", "name=odd")
    assert done.returncode != 0
    assert "data.batch_size 3 cannot be divided among 2 processes" in done.stderr


@pytest.mark.parametrize("color", ["rgb", "y"])
@pytest.mark.parametrize("name", STUDENTS)
def test_every_student_learns(work, name, color):
    student = {"type": name, "color": color, **SMALL.get(name, {})}
    train = {"total_steps": 100, "log_every": 10, "ema": 0.0, "checkpoint_every": 100}
    options = _options(work, student=student, teacher=None, losses=[{"type": "l1"}], train=train, validation=None)
    assert _train(options) == 0
    lines = [json.loads(line) for line in (work / "out/run/metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["l1_sr_hr"] < 0.9 * lines[0]["l1_sr_hr"]
    assert load_model(work / "out/run/student.safetensors").spec.color == color


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_trains(work, name, random_backbones):  # noqa: F811
    losses = []
    for change in ({"against": "hr"}, {"against": "teacher"}, {"on": "features"}):
        with contextlib.suppress(UserError):  # not every loss is for images, nor every one for maps
            validate(LossOptions, {"type": name, **change}, "test")
            losses.append({"type": name, **change})
    assert losses
    data = yaml.safe_load(_options(work).read_text())["data"] | {"lr_size": 24}
    labels = [validate(LossOptions, loss, "test").label for loss in losses]
    if len(set(labels)) < len(labels):  # a loss on features alone takes "against: teacher" too
        losses = losses[-1:]
    assert _train(_options(work, losses=losses, data=data)) == 0
    line = json.loads((work / "out/run/metrics.jsonl").read_text().splitlines()[0])
    for loss in losses:
        assert line[validate(LossOptions, loss, "test").label] > 0


FEATURES = [{"type": "l1"}, {"type": "fitnet", "weight": 0.1}, {"type": "attention_transfer", "weight": 10.0}]


@pytest.mark.parametrize("cache", [True, False])
def test_feature_distillation_resumes_exactly_and_leaves_a_plain_student(work, cache, capsys):
    teacher = {"model": str(work / "teacher.safetensors"), "cache": cache}
    options = _options(work, losses=FEATURES, teacher=teacher, features={"count": 2})
    assert _train(options, "name=whole") == 0
    assert "compares features of body." in capsys.readouterr().out
    assert _train(options, "name=cut", "train.keep_checkpoints=9") == 0
    (work / "out/cut/checkpoints/step_00000006.pt").unlink()
    assert _train(options, "name=cut", "--resume") == 0
    _assert_same(_state(work, "whole"), _state(work, "cut"))
    assert len(_state(work, "whole")["adapters"]) == 4  # weight and bias of two
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
    assert _train(_options(work, losses=losses, teacher=teacher)) == 0
    lines = [json.loads(line) for line in (work / "out/run/metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["kind"] == "train"]
    weights = [(line["step"], line["weight_l1_sr_hr"], line["weight_l1_sr_teacher"]) for line in train]
    assert weights == [(2, 1.0, 0.0), (3, 1.0, 2.0), (4, 1.0, 2.0), (6, 0.0, 2.0)]
    for line, (_, first, second) in zip(train, weights):
        total = first * line["l1_sr_hr"] + second * line["l1_sr_teacher"] + 0.1 * line["fitnet_features"]
        assert line["total"] == pytest.approx(total, rel=1e-4)


def test_adapters_are_trained_alike_in_all_processes(work):
    options = _options(work, losses=FEATURES, features={"count": 2})
    for processes in (1, 2):
        done = _launch(options, processes, f"name=f{processes}", "train.total_steps=1", "train.checkpoint_every=1")
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = ([s["exp_avg"] for s in _state(work, f"f{n}")["optimizer"]["state"].values()] for n in (1, 2))
    assert len(one) > len(list(build_model(architecture(type="mobile_sr", num_feat=8, num_block=1), 2).parameters()))
    for first, second in zip(one, two):
        torch.testing.assert_close(first, second, atol=1e-7, rtol=1e-3)


@pytest.mark.parametrize(
    "train",
    [{"precision": "bf16"}, {"channels_last": False}, {"ema": 0.0}],
    ids=["bf16", "channels_first", "no_ema"],
)
def test_variants_of_training(work, train):
    base = {"total_steps": 3, "log_every": 1, "checkpoint_every": 3}
    assert _train(_options(work, train=base)) == 0
    assert _train(_options(work, train=base | train), "name=variant") == 0
    first, second = (
        json.loads((work / "out" / n / "metrics.jsonl").read_text().splitlines()[0]) for n in ("run", "variant")
    )
    assert second["total"] == pytest.approx(first["total"], rel=0.02)


def test_starting_from_a_model_file(work):
    assert _train(_options(work)) == 0
    again = _options(work, init_from=str(work / "out/run/student.safetensors"))
    assert _train(again, "name=again") == 0
    first = load_model(work / "out/run/student.safetensors").state_dict()
    _assert_same(load_model(work / "out/again/initial.safetensors").state_dict(), first)
    assert _train(again, "name=other", "student.num_feat=16") == 2


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"scale": 4}, "network for scale 2, but scale 4 is asked for"),
        ({"teacher": {"model": "none.pth"}}, "model not found: none.pth"),
        ({"validation": {"set": "Set99"}}, "there is no set 'Set99'"),
        (
            {"student": {"type": "rrdbnet"}, "scale": 3, "teacher": None, "losses": [{"type": "l1"}]},
            "cannot be built for scale 3",
        ),
        ({"device": "cuda:9"}, "device 'cuda:9' is not available"),
        (
            {"losses": [{"type": "l1", "against": "teacher"}, {"type": "lpips"}]},
            "pretrained weights of alexnet are missing",
        ),
    ],
)
def test_what_cannot_work_is_said_before_the_first_step(work, capsys, no_data, change, expected):
    assert _train(_options(work, **change)) == 2
    said = capsys.readouterr().err
    assert expected in said
    assert "Traceback" not in said
    assert not list((work / "out").glob("run/[!o]*"))  # nothing but the options: the name can be used again


def test_a_loss_that_is_not_finite_stops_the_run(work, capsys):
    options = _options(work, optimizer={"learning_rate": 1e25}, schedule={"type": "constant", "warmup": 1})
    tree = yaml.safe_load(options.read_text())
    tree["train"] = {"total_steps": 40, "log_every": 5, "checkpoint_every": 1, "ema": 0.0}
    tree["validation"] = None
    options.write_text(yaml.safe_dump(tree))
    assert _train(options) == 2
    said = capsys.readouterr().err
    assert "the loss is not finite: term 'l1_sr_" in said
    assert "Last good checkpoint: " in said
    named = said.split("Last good checkpoint: ")[1].split(". ")[0]
    if named != "none was saved yet":
        assert all(v.isfinite().all() for v in load_checkpoint(Path(named))["student"].values())


def _wait_for(condition, seconds=120):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, "it did not happen in time"
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_runs_go_on(work, number):
    options = _options(work)
    assert (
        _train(options, "name=whole", "train.total_steps=300", "train.checkpoint_every=300", "validation.every=300")
        == 0
    )
    more = ["name=cut", "train.total_steps=300", "train.checkpoint_every=20", "validation.every=300"]
    process = subprocess.Popen(
        [sys.executable, "scripts/train.py", "-opt", str(options), *more], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    _wait_for(lambda: latest_checkpoint(work / "out/cut/checkpoints") is not None or process.poll() is not None)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    if number != signal.SIGKILL:
        assert process.returncode == 130
        assert "Go on with the same command and --resume." in said
        assert "Traceback" not in said
    step = _state(work, "cut")["progress"]["step"]
    assert 20 <= step < 300
    assert _train(options, *more, "--resume") == 0
    _assert_same(_state(work, "whole"), _state(work, "cut"))


def test_a_full_disk_is_a_sentence_and_loses_nothing(work, capsys, monkeypatch):
    assert _train(_options(work), "train.total_steps=3") == 0
    before = (work / "out/run/checkpoints/step_00000003.pt").read_bytes()

    write = Path.write_bytes

    def full(path, content):
        if "step_" in path.name:
            raise OSError(28, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    assert _train(_options(work), "--resume") == 2
    assert "step_00000006.pt: No space left on device" in capsys.readouterr().err
    assert (work / "out/run/checkpoints/step_00000003.pt").read_bytes() == before
    assert [p.name for p in (work / "out/run/checkpoints").iterdir()] == ["step_00000003.pt"]


def test_a_skipped_photo_is_named(work, capsys):
    (work / "photos/bad.png").write_text("text")
    assert _train(_options(work)) == 2
    assert "bad.png: cannot be read as an image" in capsys.readouterr().err
    data = yaml.safe_load(_options(work).read_text())["data"] | {"on_unreadable": "skip"}
    assert _train(_options(work, data=data)) == 0
    assert "skipped: " in capsys.readouterr().out


def test_evaluating_the_student_of_a_run(work, capsys):
    assert _train(_options(work)) == 0
    student = str(work / "out/run/student.safetensors")
    models = [student, f"old one={work}/out/run/initial.safetensors"]
    where = ["--datasets", str(work / "set"), "--scale", "2", "--device", "cpu", "--out", str(work / "report")]
    code = main(["evaluate", "--model", *models, *where, "--lpips", "none"])
    said = capsys.readouterr().out
    assert code == 0
    rows = [line.split()[:2] for line in said.splitlines() if line.startswith("set ")]
    assert ["set", "bicubic"] in rows
    assert ["set", "run"] in rows
    assert "old one" in said
    tree = json.loads((work / "report/results.json").read_text())
    assert [result["model"] for result in tree["results"]] == ["bicubic", "run", "old one"]
    assert main(["evaluate", "--model", student, "--datasets", str(work / "set"), "--scale", "4"]) == 2
    assert "network for scale 2, but scale 4" in capsys.readouterr().err
    (work / "set/HR/w.png").write_text("text")
    assert main(["evaluate", "--datasets", str(work / "set"), "--scale", "2", "--lpips", "none"]) == 1
    assert "w.png: cannot be read" in capsys.readouterr().err
