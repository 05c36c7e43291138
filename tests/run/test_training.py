"""A few real training steps, through the command line as a user starts it."""

from __future__ import annotations

import json

import pytest
import torch
import yaml

from sr_distill.cli import main
from sr_distill.models import STUDENTS, load_model

from ..conftest import SMALL, in_colors
from .helpers import assert_same, run_training, write_options

pytestmark = pytest.mark.run


def test_a_run_leaves_what_it_promises(work, capsys):
    assert run_training(write_options(work)) == 0
    out = work / "out/run"
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in train] == [2, 3, 4, 6]
    assert {"total", "l1_sr_hr", "l1_sr_teacher", "learning_rate", "images_per_second"} <= train[0].keys()
    assert train[0]["total"] == pytest.approx(train[0]["l1_sr_hr"] + 0.5 * train[0]["l1_sr_teacher"], rel=1e-5)
    assert [line["step"] for line in lines if line["kind"] == "validation"] == [3, 6]
    assert {"psnr_y_b2", "ssim_y_b2"} <= lines[-1].keys()
    assert list((out / "tensorboard").glob("events.*"))
    assert yaml.safe_load((out / "options.yml").read_text())["optimizer"]["learning_rate"] == 3e-3
    student = load_model(out / "student.safetensors")
    assert student.spec.scale == 2
    best = max(line["psnr_y_b2"] for line in lines if line["kind"] == "validation")
    from sr_distill.evaluate import evaluate_set, open_set

    measured = evaluate_set(student, open_set(str(work / "set"), 2, None), torch.device("cpu")).mean("psnr_y")
    assert measured == pytest.approx(best, abs=1e-3)  # another memory layout rounds a pixel or two otherwise
    assert load_model(out / "initial.safetensors").spec == student.spec
    assert "The student:" in capsys.readouterr().out


def test_a_run_has_the_threads_that_its_options_say(work):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert run_training(write_options(work), "train.threads=1", "train.total_steps=1") == 0
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("name", "tree"), in_colors(STUDENTS, "rgb", "y"))
def test_every_student_learns(work, name, tree):
    student = {"type": name, **tree, **SMALL.get(name, {})}
    train = {"total_steps": 100, "log_every": 10, "ema": 0.0, "checkpoint_every": 100}
    options = write_options(work, student=student, teacher=None, losses=[{"type": "l1"}], train=train, validation=None)
    assert run_training(options) == 0
    lines = [json.loads(line) for line in (work / "out/run/metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["l1_sr_hr"] < 0.9 * lines[0]["l1_sr_hr"]
    assert load_model(work / "out/run/student.safetensors").spec.color == tree.get("color", "rgb")


def test_starting_from_a_model_file(work):
    assert run_training(write_options(work)) == 0
    again = write_options(work, init_from=str(work / "out/run/student.safetensors"))
    assert run_training(again, "name=again") == 0
    first = load_model(work / "out/run/student.safetensors").state_dict()
    assert_same(load_model(work / "out/again/initial.safetensors").state_dict(), first, exact=False)
    assert run_training(again, "name=other", "student.num_feat=16") == 2


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"scale": 4}, "network for scale 2, but scale 4 is asked for"),
        ({"teacher": {"model": "none.pth"}}, "model not found: none.pth"),
        ({"validation": {"sets": ["Set99"]}}, "there is no set 'Set99'"),
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
    assert run_training(write_options(work, **change)) == 2
    said = capsys.readouterr().err
    assert expected in said
    assert "Traceback" not in said
    assert not list((work / "out").glob("run/[!o]*"))  # nothing but the options: the name can be used again


def test_a_skipped_photo_is_named(work, capsys):
    (work / "photos/bad.png").write_text("text")
    assert run_training(write_options(work)) == 2
    assert "bad.png: cannot be read as an image" in capsys.readouterr().err
    data = yaml.safe_load(write_options(work).read_text())["data"] | {"on_unreadable": "skip"}
    assert run_training(write_options(work, data=data)) == 0
    assert "skipped: " in capsys.readouterr().out


def test_evaluating_the_student_of_a_run(work, capsys):
    assert run_training(write_options(work)) == 0
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
