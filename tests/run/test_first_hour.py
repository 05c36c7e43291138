"""Mistakes of a first hour in whole runs: none may end in a wrong result without a word."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import sr_distill as sd
from sr_distill.cli import main
from sr_distill.data.embedded import training_photos
from sr_distill.data.images import read_rgb
from sr_distill.evaluate.validation import silent_activations
from sr_distill.models import build_model, load_model, save_model
from sr_distill.train.checkpoint import latest_checkpoint

from ..conftest import ROOT, natural_image, small, write_image
from .helpers import last_state, run_training, write_options

pytestmark = pytest.mark.run


def _lines(work, kind, name="run"):
    lines = [json.loads(line) for line in (work / f"out/{name}/metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def _broken(work, value=float("nan")):
    """A teacher one of whose weights is no number."""
    model = load_model(work / "teacher.safetensors")
    with torch.no_grad():
        list(model.parameters())[-1].fill_(value)
    save_model(model, work / "broken.safetensors")
    return str(work / "broken.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("cache", [True, False])
def test_a_teacher_that_gives_no_numbers_stops_the_run(work, capsys, value, cache):
    teacher = {"model": _broken(work, value), "check": False, "cache": cache}
    assert run_training(write_options(work, teacher=teacher)) == 2
    said = capsys.readouterr().err
    assert "0.png: edsr gives values that are not finite numbers" in said
    assert not list((work / "cache").glob("teacher_*/*.jsonl")) or not cache
    assert not (work / "out/run/checkpoints").exists()


@pytest.mark.parametrize(
    ("precision", "has_bf16", "is_said"), [("bf16", False, True), ("bf16", True, False), ("fp32", False, False)]
)
def test_bf16_on_a_cpu_that_only_imitates_it_is_said(work, capsys, monkeypatch, precision, has_bf16, is_said):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has_bf16)
    assert run_training(write_options(work, device="cpu", train={"total_steps": 1, "precision": precision})) == 0
    assert ("warning: this CPU has no bfloat16" in capsys.readouterr().out) == is_said


def test_a_model_that_gives_no_numbers_makes_no_image_and_no_row(work, capsys):
    model = _broken(work)
    target = work / "large.png"
    assert (
        main(["inference", "-i", str(work / "photos/0.png"), "-o", str(target), "--model", model, "--device", "cpu"])
        == 1
    )
    assert "photos/0.png: edsr gives values that are not finite numbers" in capsys.readouterr().err
    assert not target.exists()
    measured = ["--datasets", str(work / "set"), "--scale", "2", "--lpips", "none", "--device", "cpu"]
    assert main(["evaluate", "--model", model, *measured]) == 1
    said = capsys.readouterr()
    assert "v.png: broken gives values that are not finite numbers" in said.err
    assert "7.6" not in said.out


@pytest.mark.parametrize("cache", [True, False])
def test_a_teacher_worse_than_bicubic_stops_the_run_unless_it_may_be(work, capsys, cache):
    teacher = {"model": str(work / "teacher.safetensors"), "cache": cache, "check": True}
    options = write_options(work, teacher=teacher)
    assert run_training(options) == 2
    assert "nothing good can be learned from it" in capsys.readouterr().err
    assert not (work / "out/run").exists() or not list((work / "out/run").iterdir())
    assert run_training(options, "teacher.check=false") == 0
    said = capsys.readouterr().out
    (line,) = [line for line in said.splitlines() if line.startswith("teacher has ")]
    teacher_psnr, bicubic = (float(line.split(" has ")[1].split()[0]), float(line.split("upscaling ")[1].split()[0]))
    assert teacher_psnr < bicubic
    assert "and bicubic upscaling" in line


def test_what_stands_beside_the_student_is_what_evaluate_measures(work, capsys):
    """Bicubic and the teacher in validation, against the same models measured by the other command's way."""
    write_image(work / "other/HR/w.png", natural_image(40, 36, seed=4))
    validation = {
        "sets": [str(work / "set"), str(work / "other")],
        "every": 3,
        "metrics": ["ssim_y", "psnr_y"],
        "best_by": "psnr_y",
    }
    assert run_training(write_options(work, validation=validation | {"samples": 1})) == 0
    said = capsys.readouterr()
    expected = {}
    for name, model in (("bicubic", None), ("teacher", sd.open_model(work / "teacher.safetensors"))):
        (line,) = _lines(work, name)
        if model is None:
            from sr_distill.models import bicubic_model

            model = bicubic_model(2)
        for folder in ("set", "other"):
            found = sd.evaluate(model, str(work / folder), ["psnr_y", "ssim_y"], "cpu")[str(work / folder)]
            assert line[f"{folder}_psnr_y_b2"] == pytest.approx(found["psnr_y"], abs=1e-9)
            assert line[f"{folder}_ssim_y_b2"] == pytest.approx(found["ssim_y"], abs=1e-9)
            expected[name, folder] = found["psnr_y"]
    shown = f"(bicubic {expected['bicubic', 'other']:.4f}, teacher {expected['teacher', 'other']:.4f})"
    assert shown in said.out + said.err
    scores = [np.mean([line["set_psnr_y_b2"], line["other_psnr_y_b2"]]) for line in _lines(work, "validation")]
    progress = last_state(work)["progress"]
    assert progress["best"]["student"] == pytest.approx(max(scores))
    assert progress["judged_by"] == "psnr_y_b2 on set, other"
    folder = work / "out/run/validation"
    names = {str(path.relative_to(folder)) for path in folder.rglob("*.png")}
    assert names == {f"{place}/set_v.png" for place in ("bicubic", "teacher", "step_00000003", "step_00000006")}
    assert Image.open(folder / "step_00000006/set_v.png").size == (56, 48)
    assert (read_rgb(folder / "bicubic/set_v.png") != read_rgb(folder / "step_00000006/set_v.png")).any()


def test_the_best_and_the_last_student_are_both_kept_and_can_be_named(work, capsys):
    """By a metric by which the first is the best; the last is another."""
    options = write_options(work, validation={"sets": [str(work / "set")], "every": 2, "metrics": ["psnr_y"]})
    assert run_training(options, "optimizer={type: adam, learning_rate: 0.3}", "train.total_steps=8") == 0
    folder = work / "out/run"
    last, best = (load_model(folder / f"{name}.safetensors") for name in ("last", "student"))
    scores = {line["step"]: line["psnr_y_b2"] for line in _lines(work, "validation")}
    psnr = [
        sd.evaluate(model, str(work / "set"), ["psnr_y"], "cpu")[str(work / "set")]["psnr_y"] for model in (last, best)
    ]
    assert psnr == pytest.approx([scores[8], max(scores.values())], abs=1e-3)
    x = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(sd.open_model(folder)(x), best(x))
    torch.testing.assert_close(sd.open_model(latest_checkpoint(folder / "checkpoints"))(x), last(x))
    out = str(work / "up.png")
    checkpoint = str(latest_checkpoint(folder / "checkpoints"))
    assert (
        main(["inference", "-i", str(work / "photos/0.png"), "-o", out, "--model", checkpoint, "--device", "cpu"]) == 0
    )


def test_a_student_that_learns_nothing_is_said(work, capsys):
    options = write_options(work, student={"type": "mobile_sr", "num_feat": 8, "num_block": 2})
    assert (
        run_training(options, "optimizer={type: adam, learning_rate: 30}", "train.total_steps=30", "train.ema=0") == 0
    )
    said = capsys.readouterr()
    assert "warning: step " in said.out + said.err
    assert "is dead in part" in said.out + said.err
    last = said.out.splitlines()[-1]
    assert last.startswith("warning: the student is no better than bicubic upscaling")


def test_dead_activations_are_found():
    model = build_model(small("mobile_sr").model_copy(update={"activation": "relu"}), 2).eval().collapsed()
    with torch.no_grad(), silent_activations(model) as dead:
        model(torch.rand(1, 3, 8, 8))
        assert dead() == []
    with torch.no_grad():
        model.net.head[0].weight.zero_()
        model.net.head[0].bias.fill_(-1)
        for block in model.net.body:
            block[0].bias.fill_(100)  # alive, whatever comes in
        with silent_activations(model) as dead:
            model(torch.rand(1, 3, 8, 8))
    assert dead() == ["head.1"]


def test_the_table_of_terms_says_what_autograd_says(work, capsys, monkeypatch):
    """Shares of the gradient in the first step, computed again by hand; and the run is to the bit what it is without."""
    losses = [
        {"type": "l1"},
        {"type": "mse", "against": "teacher", "weight": 3.0},
        {"type": "mse", "schedule": {"start": 5}},
    ]
    options = write_options(work, losses=losses)
    seen = []
    from sr_distill.train.loop import Ledger

    before = Ledger.measure

    def measure(self, term, weight, compute, given, weights):
        value = before(self, term, weight, compute, given, weights)
        gradients = torch.autograd.grad(value * weight, weights, retain_graph=True)
        seen.append((term.label, torch.cat([g.flatten() for g in gradients]).norm().item()))
        return value

    monkeypatch.setattr(Ledger, "measure", measure)
    changes = ["train.shares_every=4", "train.log_every=1", "train.total_steps=8", "validation=null"]
    assert run_training(options, *changes) == 0
    said = capsys.readouterr()
    rows = [
        line.split() for line in (said.out + said.err).splitlines() if line.strip().startswith(("l1_sr_hr", "mse_sr_"))
    ]
    assert rows[0][:4] == ["l1_sr_hr", "sr", "against", "hr"]
    assert rows[2][:6] == ["mse_sr_hr", "sr", "against", "hr", "0", "not"]
    first = {
        label: np.mean([norm for name, norm in seen[:6] if name == label]) for label in ("l1_sr_hr", "mse_sr_teacher")
    }
    share = first["l1_sr_hr"] / sum(first.values())
    assert abs(float(rows[0][6].rstrip("%")) / 100 - share) < 0.006
    logged = {line["step"]: line for line in _lines(work, "train")}
    assert [step for step, line in logged.items() if "share_l1_sr_hr" in line] == [1, 2, 3, 5]
    assert sum(logged[5][f"share_{label}"] for label in first) == pytest.approx(1)
    assert run_training(options, *changes, "train.shares_every=0", "name=without") == 0
    weights = [last_state(work, name)["students"]["student"] for name in ("run", "without")]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_one_term_that_is_all_of_the_gradient_is_said(work, capsys):
    losses = [{"type": "l1"}, {"type": "l1", "against": "teacher", "weight": 100.0}]
    assert run_training(write_options(work, losses=losses)) == 0
    said = capsys.readouterr()
    assert re.search("warning: l1_sr_teacher is 9.% of the gradient.* with weight", said.out + said.err)


def test_two_do_not_train_in_one_folder(work):
    options = write_options(work, validation=None)
    command = [sys.executable, str(ROOT / "scripts/train.py"), "-opt", str(options)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    more = ["train.total_steps=100000", "train.checkpoint_every=5"]
    with subprocess.Popen(
        [*command, *more], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as first:
        try:
            until = time.monotonic() + 120
            while latest_checkpoint(work / "out/run/checkpoints") is None and time.monotonic() < until:
                time.sleep(0.1)
            second = subprocess.run([*command, *more, "--resume"], env=env, capture_output=True, text=True, timeout=120)
            assert second.returncode == 2
            assert f"process {first.pid} on " in second.stderr
            first.send_signal(signal.SIGTERM)
            said = first.communicate(timeout=60)[1]
        finally:
            first.kill()
    assert "stopping after this step" in said
    steps = [line["step"] for line in _lines(work, "train")]
    assert steps == sorted(set(steps))
    assert not (work / "out/run/running.json").exists()


def test_photos_or_a_teacher_that_changed_are_noticed(work, capsys):
    options = write_options(work)
    assert run_training(options, "train.total_steps=3") == 0
    before = (work / "out/run/options.yml").read_text()
    write_image(work / "photos/1.png", natural_image(80, 90, seed=77))
    assert run_training(options, "--resume") == 2
    assert "data.train was" in capsys.readouterr().err
    assert (work / "out/run/options.yml").read_text() == before
    torch.manual_seed(5)
    save_model(build_model(small("edsr"), 2), work / "teacher.safetensors")
    assert run_training(options, "--resume", "--allow-changes", "data.train") == 2
    assert "teacher.model was" in capsys.readouterr().err
    assert run_training(options, "--resume", "--allow-changes", "data.train,teacher.model") == 0
    said = capsys.readouterr().out
    assert "changed since the run was started: data.train was" in said
    assert (work / "out/run/options.yml").read_text() == before
    assert yaml.safe_load((work / "out/run/options_from_step_00000003.yml").read_text())["train"]["total_steps"] == 6


def test_a_resume_that_fails_changes_nothing(work, capsys):
    options = write_options(work)
    assert run_training(options, "train.total_steps=3") == 0
    files = {p: p.read_bytes() for p in (work / "out/run").rglob("*") if p.is_file()}
    assert run_training(options, "--resume", "optimizer.learning_rate=0.3") == 2
    assert "--allow-changes optimizer.learning_rate" in capsys.readouterr().err
    (work / "teacher.safetensors").write_bytes(b"no")
    assert run_training(options, "--resume") == 2
    assert {p: p.read_bytes() for p in (work / "out/run").rglob("*") if p.is_file()} == files


def test_a_run_that_never_saved_anything_is_taken_over(work, capsys, monkeypatch):
    options = write_options(work)

    def fail(*_):
        raise RuntimeError("a mistake in a loss of one's own")

    with monkeypatch.context() as mistaken:
        mistaken.setattr("sr_distill.train.task.DistillationTask.forward", fail)
        assert run_training(options) == 3
    assert (work / "out/run/options.yml").exists()
    assert run_training(options) == 0
    assert [line["step"] for line in _lines(work, "validation")] == [3, 6]
    assert run_training(options) == 2
    assert "is there already" in capsys.readouterr().err


def test_a_teachers_stored_outputs_that_were_damaged_are_made_anew(work):
    options = write_options(work)
    assert run_training(options) == 0
    shards = list((work / "cache").glob("teacher_*/*.bin"))
    good = {path: path.read_bytes() for path in shards}
    for path in shards:
        path.write_bytes(bytes(path.stat().st_size))
    assert run_training(options, "name=again") == 0
    weights = [last_state(work, name)["students"]["student"] for name in ("run", "again")]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert len(good) >= 2  # of the photos, and of the validation images


def test_lr_of_other_images_in_a_set_is_said(work, capsys):
    photos = [read_rgb(path)[:240, :320] for path in training_photos()[:4]]
    for index, photo in enumerate(photos):
        write_image(work / f"pairs/HR/{index}.png", photo)
        write_image(work / f"pairs/LR_bicubic/X2/{index}x2.png", photos[index - 1][::2, ::2])
    arguments = ["--datasets", str(work / "pairs"), "--scale", "2", "--lpips", "none", "--device", "cpu"]
    assert main(["evaluate", *arguments]) == 1
    assert "pairs: its LR images are not those of its HR images" in capsys.readouterr().err


def test_lpips_that_was_asked_for_and_is_not_there_fails(work, capsys, monkeypatch, no_data):
    arguments = ["--datasets", str(work / "set"), "--scale", "2", "--device", "cpu"]
    assert main(["evaluate", *arguments, "--lpips", "vgg"]) == 1
    assert "LPIPS is n/a" in capsys.readouterr().err
    assert main(["evaluate", *arguments]) == 0


def test_a_place_for_the_report_that_cannot_be_is_refused_before_measuring(work, capsys):
    (work / "taken").write_text("mine")
    arguments = ["--datasets", str(work / "set"), "--scale", "2", "--lpips", "none", "--out", str(work / "taken")]
    assert main(["evaluate", *arguments]) == 2
    said = capsys.readouterr()
    assert "is a file; name a folder" in said.err
    assert "psnr" not in said.out
