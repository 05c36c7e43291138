"""Runs that are interrupted, fail, or are shared among processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from sr_distill import evaluate
from sr_distill.models import build_model, save_model
from sr_distill.train import Trainer
from sr_distill.train.checkpoint import all_checkpoints, latest_checkpoint, load_checkpoint

from ..conftest import ROOT, small
from .helpers import assert_same, last_state, launch, run_training, torchrun, write_options

pytestmark = pytest.mark.run


@pytest.mark.parametrize("cache", [True, False])
def test_resume_equals_uninterrupted(work, cache):
    teacher = {"model": str(work / "teacher.safetensors"), "cache": cache}
    options = write_options(work, teacher=teacher, optimizer={"clip_grad_norm": 0.5})
    assert run_training(options, "name=whole") == 0
    assert run_training(options, "name=parts", "train.checkpoint_every=2", "train.keep_checkpoints=9") == 0
    checkpoints = work / "out/parts/checkpoints"
    (checkpoints / "step_00000006.pt").unlink()
    (checkpoints / "step_00000004.pt").unlink()
    assert run_training(options, "name=parts", "--resume") == 0
    assert_same(last_state(work, "whole"), last_state(work, "parts"))
    first, second = (
        [json.loads(line) for line in (work / "out" / n / "metrics.jsonl").read_text().splitlines()]
        for n in ("whole", "parts")
    )
    assert [line["psnr_y_b2"] for line in first if "psnr_y_b2" in line] == [
        line["psnr_y_b2"] for line in second if "psnr_y_b2" in line
    ]
    assert run_training(options, "name=parts", "--resume") == 0  # nothing left to do


def test_training_for_int8_resumes_with_its_ranges(work):
    save_model(build_model(small("mobile_sr"), 2), work / "start.safetensors")
    change = {
        "student": small("mobile_sr").model_dump(),
        "init_from": str(work / "start.safetensors"),
        "quantization": {"momentum": 0.3},
    }
    options = write_options(work, **change)
    assert run_training(options, "name=whole") == 0
    assert run_training(options, "name=parts", "train.checkpoint_every=2", "train.keep_checkpoints=9") == 0
    for step in (4, 6):
        (work / f"out/parts/checkpoints/step_0000000{step}.pt").unlink()
    assert run_training(options, "name=parts", "--resume") == 0
    assert_same(last_state(work, "whole"), last_state(work, "parts"))
    ranges = {k: v for k, v in last_state(work, "whole")["averages"]["student"].items() if "range.largest" in k}
    assert len(ranges) == 6
    assert all(value.isfinite() for value in ranges.values())
    assert run_training(options, "name=other", "quantization.momentum=0.9") == 0
    with pytest.raises(AssertionError):
        assert_same(last_state(work, "whole"), last_state(work, "other"))


def test_two_processes_equal_one(work):
    options = write_options(work, optimizer={"type": "adam"})
    for processes in (1, 2):
        done = launch(options, processes, f"name=p{processes}", "train.total_steps=1", "train.checkpoint_every=1")
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = last_state(work, "p1"), last_state(work, "p2")
    # After one step of Adam the first moment is the gradient itself, up to a factor: a wrong scale cannot hide in it.
    gradients = [
        torch.cat([s["exp_avg"].flatten() for s in state["optimizer"]["state"].values()]) for state in (one, two)
    ]
    assert gradients[0].abs().max() > 1e-5
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-7, rtol=1e-4)
    totals = [_train_lines(work / f"out/p{n}")[0]["total"] for n in (1, 2)]
    assert totals[0] == pytest.approx(totals[1], rel=1e-5)


def test_two_processes_have_the_ranges_of_one(work):
    """Of training for int8: a step of two processes looks at the samples of both."""
    save_model(build_model(small("mobile_sr"), 2), work / "start.safetensors")
    options = write_options(
        work,
        student=small("mobile_sr").model_dump(),
        init_from=str(work / "start.safetensors"),
        quantization={"momentum": 1.0},
        optimizer={"type": "adam"},
    )
    for processes in (1, 2):
        done = launch(options, processes, f"name=p{processes}", "train.total_steps=1", "train.checkpoint_every=1")
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = (last_state(work, name)["students"]["student"] for name in ("p1", "p2"))
    names = [name for name in one if name.endswith(("range.least", "range.largest"))]
    assert len(names) == 12
    for name in names:
        torch.testing.assert_close(one[name], two[name], atol=1e-6, rtol=1e-5)


def _train_lines(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "train"]


DROPS = '''
from typing import Literal

from pydantic import Field
from torch import nn

from sr_distill.models import Architecture, register_student


@register_student
class Drops(Architecture):
    """Two convolutions with dropout between them."""

    type: Literal["drops"] = Field(description="Name of the network.")

    def build(self, scale):
        layers = [nn.Conv2d(3, 8, 3, padding=1), nn.Dropout(0.5), nn.Conv2d(8, 3 * scale**2, 3, padding=1)]
        return nn.Sequential(*layers, nn.PixelShuffle(scale))
'''


def test_a_network_that_draws_resumes_exactly(work):
    """What it draws is a function of seed and step."""
    (work / "drops.py").write_text(DROPS)
    options = write_options(work, plugins=["drops.py"], student={"type": "drops"})
    assert run_training(options, "name=whole") == 0
    assert run_training(options, "name=parts", "train.keep_checkpoints=9") == 0
    (work / "out/parts/checkpoints/step_00000006.pt").unlink()
    assert run_training(options, "name=parts", "--resume") == 0
    assert_same(last_state(work, "whole"), last_state(work, "parts"))
    assert run_training(options, "name=other", "seed=1") == 0
    totals = [_train_lines(work / f"out/{n}")[0]["total"] for n in ("whole", "other")]
    assert totals[0] != totals[1]


def test_what_accelerate_launch_sets_changes_nothing(work, monkeypatch):
    options = write_options(work, losses=[{"type": "l1"}, {"type": "fitnet"}], optimizer={"clip_grad_norm": 0.1})
    assert run_training(options, "name=plain") == 0
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    launched = subprocess.run(
        [sys.executable, "scripts/train.py", "-opt", str(options), "name=launched"],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
    )
    assert launched.returncode == 0, launched.stderr
    assert_same(last_state(work, "plain")["students"], last_state(work, "launched")["students"], exact=False)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_processes_that_are_told_to_stop_save_and_go_on(work, number):
    """Also with a log line every 1000 steps only: they agree by the clock. What they go on to is what was never stopped."""
    steps = ["train.checkpoint_every=3000", "train.log_every=1000", "validation.every=3000", "train.total_steps=3000"]
    options = write_options(work, schedule={"type": "constant"})
    command = [*torchrun(2), "-opt", str(options), *steps, "name=cut"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True
    )
    _wait_for(lambda: (work / "out/cut/initial.safetensors").exists() or process.poll() is not None)
    time.sleep(5)
    process.send_signal(number)
    _, said = process.communicate(timeout=90)
    step = last_state(work, "cut")["progress"]["step"]
    assert 0 < step < 3000, said[-2000:]
    steps[-1] = f"train.total_steps={step + 5}"
    for arguments in (["name=cut", "--resume"], ["name=whole"]):
        done = launch(options, 2, *steps, *arguments)
        assert done.returncode == 0, done.stderr[-2000:]
    assert_same(last_state(work, "whole"), last_state(work, "cut"))


def test_a_checkpoint_of_another_run_does_not_fit(work, capsys):
    """And the last step leaves a checkpoint, also where it is not a multiple of checkpoint_every."""
    options = write_options(work, teacher=None, losses=[{"type": "l1"}], validation=None)
    assert run_training(options, "train.total_steps=4") == 0
    assert run_training(options, "name=wide", "student.num_feat=16", "train.total_steps=4") == 0
    checkpoints = sorted((work / "out/run/checkpoints").iterdir())
    assert [path.name for path in checkpoints] == ["step_00000003.pt", "step_00000004.pt"]
    checkpoints[1].write_bytes((work / "out/wide/checkpoints/step_00000004.pt").read_bytes())
    capsys.readouterr()
    assert run_training(options, "--resume") == 2
    assert "step_00000004.pt does not fit this run (Error(s) in loading state_dict for" in capsys.readouterr().err


def test_a_stop_in_a_validation_is_made_up_for(work, monkeypatch, capsys):
    """The validation that was cut short is done when the run goes on, as if it had never been stopped."""
    options = write_options(work)
    assert run_training(options, "name=whole") == 0
    measure = evaluate.evaluate_set

    def stopping(model, *args, **kwargs):
        if model.spec.name == "mobile_sr":
            os.kill(os.getpid(), signal.SIGINT)
        return measure(model, *args, **kwargs)

    monkeypatch.setattr("sr_distill.evaluate.validation.evaluate_set", stopping)
    assert run_training(options, "name=cut") == 130
    assert "stopped after step 3; the state is in " in capsys.readouterr().err
    monkeypatch.undo()
    state = last_state(work, "cut")
    assert state["progress"] == {"step": 3, "validated": 0, "judged_by": "", "best": {}, "best_step": {}}
    assert run_training(options, "name=cut", "--resume") == 0
    assert_same(last_state(work, "whole"), last_state(work, "cut"))
    lines = [
        [json.loads(x) for x in (work / f"out/{n}/metrics.jsonl").read_text().splitlines()] for n in ("whole", "cut")
    ]
    shown = [[x for x in one if x["kind"] == "validation"] for one in lines]
    assert shown[0] == shown[1]


def test_a_wsd_run_prolonged_after_its_end_equals_a_longer_one(work, capsys):
    options = write_options(work, schedule={"type": "wsd", "decay": 0.5}, validation=None)
    assert run_training(options, "name=longer", "train.total_steps=12") == 0
    assert run_training(options, "name=parts", "train.total_steps=8", "train.keep_checkpoints=1") == 0
    shorter = (work / "out/parts/student.safetensors").read_bytes()
    assert run_training(options, "name=parts", "train.total_steps=12", "--resume") == 0
    assert_same(last_state(work, "longer"), last_state(work, "parts"))
    kept = work / "out/parts/student_step_00000008.safetensors"
    assert kept.read_bytes() == shorter != (work / "out/parts/student.safetensors").read_bytes()
    assert f"the student of 8 steps stays as {kept}." in capsys.readouterr().out
    assert len(list(work.glob("out/parts/student*"))) == 2


def test_a_wsd_run_prolonged_twice_equals_a_longer_one(work):
    options = write_options(work, schedule={"type": "wsd", "decay": 0.5}, validation=None)
    assert run_training(options, "name=longer", "train.total_steps=24", "train.checkpoint_every=12") == 0
    for steps in (6, 12, 24):
        resume = ["--resume"] if steps > 6 else []
        assert (
            run_training(options, "name=parts", f"train.total_steps={steps}", "train.keep_checkpoints=1", *resume) == 0
        )
    assert_same(last_state(work, "longer"), last_state(work, "parts"))


def test_a_prolonged_wsd_run_keeps_its_own_checkpoints(work, monkeypatch, capsys):
    """Those of the shorter run, of later steps, must neither take their place nor be gone on from."""
    options = write_options(work, schedule={"type": "wsd", "decay": 0.5}, validation=None)
    every = "train.checkpoint_every=1"
    assert run_training(options, "name=longer", "train.total_steps=12", every) == 0
    assert run_training(options, "name=parts", "train.total_steps=8", every) == 0
    whole_step = Trainer._step

    def step_and_stop(trainer, batch):
        whole_step(trainer, batch)
        trainer._stop.asked = trainer.progress.step == 6

    monkeypatch.setattr(Trainer, "_step", step_and_stop)
    assert run_training(options, "name=parts", "train.total_steps=12", every, "--resume") == 130
    assert [path.stem for path in all_checkpoints(work / "out/parts/checkpoints")] == [
        f"step_{n:08d}" for n in (4, 5, 6)
    ]
    monkeypatch.setattr(Trainer, "_step", whole_step)
    capsys.readouterr()
    assert run_training(options, "name=parts", "train.total_steps=12", every, "--resume") == 0
    said = capsys.readouterr().out
    assert "(step 6)" in said
    assert "jumps" not in said
    assert_same(last_state(work, "longer"), last_state(work, "parts"))


@pytest.mark.parametrize(
    ("before", "now", "settings"),
    [
        (
            "{type: adamw}",
            "{type: adamw, weight_decay: 0.5, betas: [0.5, 0.6]}",
            {"weight_decay": 0.5, "betas": [0.5, 0.6]},
        ),
        ("{type: soap}", "{type: soap, precondition_every: 3}", {"precondition_every": 3, "betas": [0.9, 0.95]}),
        ("{type: adam}", "{type: adamw, weight_decay: 0.5}", {"decoupled_weight_decay": True, "weight_decay": 0.5}),
        ("{type: soap}", "{type: muon}", {"momentum": 0.95}),
        ("{type: adam}", "{type: soap}", {"precondition_every": 10}),
        ("{type: muon}", "{type: adam}", {"amsgrad": False}),
    ],
)
def test_an_optimizer_that_may_change_changes(work, capsys, before, now, settings):
    options = write_options(work, validation=None)
    assert run_training(options, "train.total_steps=2", f"optimizer={before}") == 0
    assert (
        run_training(options, "train.total_steps=4", f"optimizer={now}", "--resume", "--allow-changes", "optimizer")
        == 0
    )
    (group,) = last_state(work)["optimizer"]["param_groups"]
    assert {key: list(group[key]) if key == "betas" else group[key] for key in settings} == settings
    old, new = (text.split()[1].strip(",}") for text in (before, now))
    anew = f"{new} begins without anything remembered: the steps so far were {old}'s."
    assert (anew in capsys.readouterr().out) == ({old, new} not in ({"adam", "adamw"}, {old}))


def test_a_run_that_validated_and_never_saved_is_begun_anew(work):
    options = write_options(work)
    assert run_training(options) == 0
    shutil.rmtree(work / "out/run/checkpoints")
    assert run_training(options) == 0
    assert last_state(work)["progress"]["step"] == 6


def test_another_metric_decides_anew_which_student_is_best(work, capsys):
    options = write_options(work)
    assert run_training(options, "train.total_steps=3") == 0
    capsys.readouterr()
    assert run_training(options, "--resume", "validation.metrics=[ssim_y]") == 0
    said = capsys.readouterr().out
    assert "was chosen by psnr_y_b2 on set: now ssim_y_b2 on set decides anew" in said
    assert last_state(work, "run")["progress"]["best"]["student"] < 1
    assert last_state(work, "run")["progress"]["best_step"] == {"student": 6}


def test_a_batch_that_cannot_be_shared(work):
    done = launch(write_options(work), 2, "data.batch_size=3", "name=odd")
    assert done.returncode != 0
    assert "data.batch_size 3 cannot be divided among 2 processes" in done.stderr


def test_a_loss_that_is_not_finite_stops_the_run(work, capsys):
    options = write_options(
        work, optimizer={"type": "adam", "learning_rate": 1e25}, schedule={"type": "constant", "warmup": 1}
    )
    tree = yaml.safe_load(options.read_text())
    tree["train"] = {"total_steps": 40, "log_every": 5, "checkpoint_every": 1, "ema": 0.0}
    tree["validation"] = None
    options.write_text(yaml.safe_dump(tree))
    assert run_training(options) == 2
    said = capsys.readouterr().err
    assert "the loss is not finite: term 'l1_sr_" in said
    assert "Last good checkpoint: " in said
    named = Path(said.split("Last good checkpoint: ")[1].split(". ")[0])
    assert named.name == "step_00000001.pt"  # of huge weights, whose output is not finite in the next step
    assert all(v.isfinite().all() for v in load_checkpoint(named)["students"]["student"].values())


def _wait_for(condition, seconds=120):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, "it did not happen in time"
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_runs_go_on(work, number):
    options = write_options(work)
    assert (
        run_training(
            options, "name=whole", "train.total_steps=1000", "train.checkpoint_every=1000", "validation.every=1000"
        )
        == 0
    )
    more = ["name=cut", "train.total_steps=1000", "train.checkpoint_every=20", "validation.every=1000"]
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
    step = last_state(work, "cut")["progress"]["step"]
    assert 20 <= step < 1000
    assert run_training(options, *more, "--resume") == 0
    assert_same(last_state(work, "whole"), last_state(work, "cut"))


def test_a_full_disk_is_a_sentence_and_loses_nothing(work, capsys, monkeypatch):
    assert run_training(write_options(work), "train.total_steps=3") == 0
    before = (work / "out/run/checkpoints/step_00000003.pt").read_bytes()

    write = Path.write_bytes

    def full(path, content):
        if "step_" in path.name:
            raise OSError(28, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    assert run_training(write_options(work), "--resume") == 2
    assert "step_00000006.pt: No space left on device" in capsys.readouterr().err
    assert (work / "out/run/checkpoints/step_00000003.pt").read_bytes() == before
    assert [p.name for p in (work / "out/run/checkpoints").iterdir()] == ["step_00000003.pt"]
