"""The scripts that train for hours, with hours cut down to seconds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time

import pytest
import yaml

from sr_distill.evaluate import mean_scores
from sr_distill.export import open_exported
from sr_distill.models import load_model
from sr_distill.train.checkpoint import latest_checkpoint
from sr_distill.zoo import licence_of

from ..conftest import ROOT, heed_ctrl_c
from .helpers import write_options

pytestmark = pytest.mark.run


@pytest.fixture
def scripts(monkeypatch):
    """The folder scripts/ as a place to import from."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))


@pytest.fixture
def queue(work):
    """Two small runs."""
    folder = work / "queue"
    folder.mkdir()
    for index, name in enumerate(("first", "second")):
        options = write_options(work, name=name, student={"type": "mobile_sr_tiny", "num_block": 1})
        options.rename(folder / f"{index}_{name}.yml")
    return folder


def _zoo(queue, *arguments, code=0):
    command = [sys.executable, str(ROOT / "scripts/train_zoo.py"), *arguments, "--queue", str(queue)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def _steps(work):
    return {name: latest_checkpoint(work / f"out/{name}/checkpoints") for name in ("first", "second")}


def test_the_queue_is_trained_in_order_goes_on_and_skips_what_is_finished(work, queue):
    assert "first                     waiting         0 of 6 steps" in _zoo(queue, "status")
    said = _zoo(queue, "run", "train.total_steps=100000", "--minutes", "0.35")
    assert _steps(work)["first"] is not None
    assert "left out until it is finished" in _zoo(queue, "land", "train.total_steps=100000")
    assert _steps(work)["second"] is None
    assert "first                     begun" in said
    so_far = int(_steps(work)["first"].stem[-8:])
    longer = f"train.total_steps={so_far + 6}"
    said = _zoo(queue, "run", longer)
    assert f"resuming from {_steps(work)['first'].parent}/step_{so_far:08d}.pt" in said
    for name in ("first", "second"):
        assert _steps(work)[name].name == f"step_{so_far + 6:08d}.pt"
        assert f"{name:24}  finished  {so_far + 6:>7,} of" in said
    before = {name: path.stat().st_mtime_ns for name, path in _steps(work).items()}
    assert "resuming" not in _zoo(queue, "run", longer)
    assert {name: path.stat().st_mtime_ns for name, path in _steps(work).items()} == before


@pytest.mark.parametrize("request_to_stop", [signal.SIGINT, signal.SIGTERM])
def test_who_stops_the_queue_stops_its_training_with_a_checkpoint(work, queue, request_to_stop):
    command = [
        sys.executable,
        str(ROOT / "scripts/train_zoo.py"),
        "run",
        "--queue",
        str(queue),
        "train.total_steps=100000",
    ]
    with subprocess.Popen([*command, "train.checkpoint_every=20"], preexec_fn=heed_ctrl_c) as process:
        try:
            until = time.monotonic() + 120
            while _steps(work)["first"] is None and time.monotonic() < until:
                time.sleep(0.1)
            process.send_signal(request_to_stop)
            assert process.wait(60) == 0
        finally:
            process.terminate()
    last = _steps(work)["first"]
    time.sleep(1.0)
    assert _steps(work) == {"first": last, "second": None}  # nobody trains on


def test_the_queue_names_what_is_wrong(work, queue):
    assert "has no third; it has first, second" in _zoo(queue, "status", "--only", "third", code=2)
    assert "has no options files" in _zoo(work / "photos", "status", code=2)
    (work / "teacher.safetensors").unlink()
    assert "first: the training ended with exit code 2" in _zoo(queue, "run", code=2)


def test_what_is_better_lands_in_the_zoo_with_its_card(work, queue, scripts, monkeypatch, capsys):
    """Judged in floats and in 8 bits."""
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed (requirements-export.txt)")
    import train_zoo

    _zoo(queue, "run", "--only", "first")
    (work / "zoo").mkdir()
    monkeypatch.setattr(train_zoo, "ZOO", work / "zoo")
    monkeypatch.setattr(train_zoo, "ROOT", work)
    monkeypatch.setattr(train_zoo, "SETS", (str(work / "set"),))
    jobs = [train_zoo.Job(path, ["train.threads=1"]) for path in sorted(queue.glob("*.yml"))]
    train_zoo.land(jobs)
    assert [path.name for path in sorted((work / "zoo").iterdir())] == ["first.md", "first.safetensors"]
    model = load_model(work / "zoo/first.safetensors")
    card = (work / "zoo/first.md").read_text()
    forms = json.loads(card.split("```json")[1].split("```")[0])
    assert forms == train_zoo.measure_forms(model)
    assert forms["fp32"] == train_zoo.measure(model) != forms["int8"]
    assert f"{model.num_parameters:,} parameters" in card
    assert "queue/0_first.yml train.threads=1\n" in card
    train_zoo.land(jobs)
    assert "is no better than psnr_y" in capsys.readouterr().out
    for float_loss, int8_loss, lands in ((1, 0, True), (-1, 2, True), (-2, 1, False)):
        losses = {"fp32": float_loss, "int8": int8_loss}
        other = {
            form: {name: [psnr - losses[form], ssim] for name, (psnr, ssim) in forms[form].items()} for form in forms
        }
        (work / "zoo/first.md").write_text(f"```json\n{json.dumps(other)}\n```")
        train_zoo.land(jobs)
        assert ((work / "zoo/first.md").read_text() == card) == lands


def test_quality_against_time(work, scripts, monkeypatch, capsys):
    import quality

    tree = yaml.safe_load(write_options(work, scale=4, teacher=None, losses=[{"type": "l1"}]).read_text())
    (work / "options.yml").write_text(yaml.safe_dump(tree))
    monkeypatch.chdir(work)
    monkeypatch.setattr(quality, "OPTIONS", work / "options.yml")
    monkeypatch.setattr(quality, "SET", str(work / "set"))
    monkeypatch.setattr(quality, "GOALS", {10.0: "easy", 90.0: "hard"})
    chosen = ["plain adam", "SESR soap"]
    costs = {f"{body} {optimizer}": 0.001 for body, optimizer in quality.kinds()}
    quality.FOLDER.mkdir(parents=True)
    (quality.FOLDER / "seconds.json").write_text(json.dumps(costs))
    arguments = ["--minutes", "0.0017", "--seeds", "0", "1", "--only", *chosen]
    assert quality.main(["run", *arguments]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")][2:]
    assert [row.split(" | ")[:2] for row in rows] == [["| SESR", "soap"], ["| plain", "adam"]]
    for row in rows:
        cells = row.strip("| ").split(" | ")
        assert cells[3:6] == ["100", "0.0", "2"]
        assert cells[-2:] == ["0 s, 5 steps", "not reached"]
    ends = [quality.curve(quality.RunFolder(path.parent)) for path in quality.FOLDER.glob("*/student.safetensors")]
    assert all(list(curve) == list(range(5, 101, 5)) for curve in ends)
    assert quality.main(["run", *arguments]) == 0  # nothing is trained again
    assert "done: 100 steps" not in capsys.readouterr().out
    options, _ = quality.Comparison(work / "other", ["train.ema=0.5"]).options_of("adam", "plain", 0, 100)
    assert (options.output_dir, options.train.ema) == (str(work / "other"), 0.5)


def test_models_in_each_runtime(tmp_path, scripts, capsys, monkeypatch):
    import exports

    monkeypatch.delenv("SR_DISTILL_DATA", raising=False)
    arguments = "--models student=mobile_sr_tiny_x2 --formats onnx openvino --precisions fp32 int8".split()
    arguments += ["--sets", "embedded", "--threads", "1", "-o", str(tmp_path)]
    monkeypatch.setitem(exports.FORMATS["openvino"].packages, "no_such_package", "no-such-package")
    assert exports.main(arguments) == 0
    said = capsys.readouterr()
    rows = [line.strip("| ").split(" | ") for line in said.out.splitlines() if line.startswith("| ")]
    assert "`student`, 640x360 to 1280x720" in said.out
    assert "left out: OpenVINO needs no-such-package" in said.err
    assert [row[:2] for row in rows[2:]] == [["PyTorch", "fp32"], ["ONNX Runtime", "fp32"], ["ONNX Runtime", "int8"]]
    for row in rows[3:]:
        folder = tmp_path / f"student_onnx_{row[1]}"
        card = json.loads((folder / "card.json").read_text())
        (pass_,) = card["latency"]["passes"]
        psnr = mean_scores(open_exported(folder), ["embedded"], ["psnr_y"], None)["embedded"]["psnr_y"]
        wanted = [sum(card["bytes"].values()) / 1e3, card["parity"]["psnr_db"], psnr, pass_["median_ms"]]
        assert [float(cell) for cell in row[2:]] == pytest.approx(wanted, abs=0.5, rel=1e-3)
        assert float(row[4]) == pytest.approx(psnr, abs=6e-4)
        assert pass_["size"] == "360x640"
        assert card["licence_of_weights"] == licence_of("mobile_sr_tiny_x2")
    assert float(rows[2][4]) > float(rows[4][4])  # rounding costs something
    assert exports.main(arguments) == 0
    assert "converting" not in capsys.readouterr().err  # nothing is made again


def test_the_rehearsal_of_what_a_gpu_shows(work, queue):
    environment = {**os.environ, "PYTHON": sys.executable, "DEVICE": "cpu", "ZOO_QUEUE": str(queue)}
    environment |= {"PYTEST_ADDOPTS": "-k metrics", "ZOO_OVERRIDES": "train.log_every=1 train.keep_checkpoints=1"}
    command = ["bash", str(ROOT / "scripts/gpu.sh"), str(work / "out"), "5"]
    for parts, resume in (("1 2 3", ""), ("3", str(work / "out/zoo.tar"))):
        said = {**environment, "PARTS": parts, "RESUME": resume}
        done = subprocess.run(command, env=said, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "passed" in (work / "out/1_tests.txt").read_text()
        assert "mobile_sr_large, bf16" in (work / "out/2_steps.txt").read_text()
        assert ("done: 6 steps" in (work / "out/3_zoo.txt").read_text()) == (not resume)
        with tarfile.open(work / "out/zoo.tar") as archive:
            names = archive.getnames()
        for name in ("first", "second"):
            assert {f"./{name}/student.safetensors", f"./{name}/checkpoints/step_00000006.pt"} <= set(names)
