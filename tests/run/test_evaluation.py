"""Evaluation by several processes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from sr_distill.models import build_model, save_model

from ..conftest import ROOT, natural_image, small, write_image

pytestmark = pytest.mark.run


def _launch(processes, script, *arguments):
    command = [sys.executable, f"scripts/{script}.py"]
    if processes > 1:
        command[1:1] = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)


@pytest.fixture
def images(tmp_path):
    """Images of three sizes, one of them too small and one no image."""
    for index, size in enumerate([(48, 48), (64, 48), (48, 48), (48, 64), (64, 48)]):
        write_image(tmp_path / f"set/HR/{index}.png", natural_image(*size, seed=index))
    write_image(tmp_path / "set/HR/tiny.png", natural_image(3, 3))
    (tmp_path / "set/HR/text.png").write_text("text")
    for name in ("a", "b"):
        save_model(build_model(small("mobile_sr"), 2), tmp_path / f"{name}.safetensors")
    return tmp_path


def test_the_table_of_several_processes_is_that_of_one(images):
    models = ["--model", str(images / "a.safetensors"), "--teacher", str(images / "b.safetensors")]
    arguments = [
        *models,
        "--datasets",
        str(images / "set"),
        "--scale",
        "2",
        "--device",
        "cpu",
        "--lpips",
        "none",
        "--no-profile",
    ]
    results = []
    for processes in (1, 2, 3):
        out = images / f"out{processes}"
        done = _launch(processes, "evaluate", *arguments, "--out", str(out))
        assert done.returncode == 1, done.stderr[-2000:]  # two images could not be measured
        assert "text.png: cannot be read" in done.stderr
        assert "tiny.png" in done.stderr
        assert done.stdout.count("mean of 5") == 3
        results.append((out / "results.json").read_text())
    assert results[0] == results[1] == results[2]


def test_several_processes_share_the_images_to_upscale(images):
    (images / "set/HR/text.png").unlink()
    arguments = ["-i", str(images / "set/HR"), "--model", str(images / "a.safetensors"), "--device", "cpu"]
    for processes in (1, 2):
        done = _launch(processes, "inference", *arguments, "-o", str(images / f"up{processes}"))
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = ({path.name: path.read_bytes() for path in (images / f"up{n}").iterdir()} for n in (1, 2))
    assert len(one) == 6
    assert one == two
