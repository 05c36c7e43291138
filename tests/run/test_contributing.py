"""CONTRIBUTING.md followed to the letter."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import pytest

from ..conftest import ROOT
from .helpers import log_of

pytestmark = pytest.mark.run

PAGE = (ROOT / "CONTRIBUTING.md").read_text()


def test_a_loss_a_network_and_a_metric_of_ones_own(tmp_path):
    files = re.findall(r"```\w+\n# (\S+)\n(.*?)```", PAGE, re.S)
    assert [name for name, _ in files] == ["my_losses.py", "my_models.py", "my_metrics.py", "my_run.yml"]
    for name, text in files:
        (tmp_path / name).write_text(text)
    commands = re.findall(r"^    python scripts/(\w+)\.py (.*my_.*)$", PAGE, re.M)
    assert [name for name, _ in commands] == ["train", "evaluate", "profile_model"]
    said = {}
    for name, arguments in commands:
        command = [sys.executable, str(ROOT / f"scripts/{name}.py"), *shlex.split(arguments)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        said[name] = done.stdout
    lines = log_of(tmp_path / "experiments/my_run")
    assert {"huber_sr_hr", "huber_sr_teacher"} <= lines[0].keys()
    assert {"worst", "psnr_y_b4"} <= lines[-1].keys()
    assert f"best in validation: {lines[-1]['worst']:.3f}" in said["train"]
    assert "Largest difference of a value, in levels. Lower is better." in said["evaluate"]
    assert "my_run" in said["profile_model"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("beta: 0.1", "losses.0.beta: got -1"),
        ("num_feat: 8", "student.num_feat: got -1"),
    ],
)
def test_their_options_are_checked_like_our_own(tmp_path, change, expected):
    for name, text in re.findall(r"```\w+\n# (\S+)\n(.*?)```", PAGE, re.S):
        (tmp_path / name).write_text(text.replace(change, f"{change.split(':')[0]}: -1"))
    command = [sys.executable, str(ROOT / "scripts/train.py"), "-opt", "my_run.yml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
