"""What the tests of real training steps share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
import yaml

from sr_distill.cli import main
from sr_distill.train.checkpoint import latest_checkpoint, load_checkpoint

from ..conftest import ROOT


def write_options(work: Path, **change) -> Path:
    """Options of a small run on the photos of ``work``, with some sections replaced."""
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
        "validation": {"sets": [str(work / "set")], "every": 3},
    } | change
    trust_teachers(tree)
    path = work / "options.yml"
    path.write_text(yaml.safe_dump({key: value for key, value in tree.items() if value is not None}))
    return path


def trust_teachers(tree: dict) -> None:
    """Teachers of these tests have random weights: they are worse than bicubic, and may be."""
    for teacher in [tree.get("teacher"), *(tree.get("teachers") or [])]:
        if teacher is not None:
            teacher.setdefault("check", False)


def run_training(path: Path, *arguments: str) -> int:
    """Run the train command in this process; its exit code."""
    return main(["train", "-opt", str(path), *arguments])


def log_of(folder: Path) -> list[dict]:
    """What a run wrote of its student: lines of metrics.jsonl, but for those of bicubic and the teachers."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] in ("train", "validation")]


def last_state(work: Path, name: str = "run") -> dict:
    """The last checkpoint of a run."""
    return load_checkpoint(latest_checkpoint(work / "out" / name / "checkpoints"))


def assert_same(first, second, exact=True):
    """Compare nested states, tensors to the bit."""
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_same(first[key], second[key], exact)
    elif isinstance(first, torch.Tensor):
        torch.testing.assert_close(first, second, **({"atol": 0, "rtol": 0} if exact else {"atol": 1e-6, "rtol": 1e-4}))
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second)
        for a, b in zip(first, second):
            assert_same(a, b, exact)
    else:
        assert first == second


def torchrun(processes: int, script: str = "scripts/train.py") -> list[str]:
    """The command that starts a script, as the train command, in several processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [*launcher, script]


def launch(options: Path, processes: int, *overrides: str) -> subprocess.CompletedProcess:
    """Run the train command in several processes."""
    command = torchrun(processes)
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, "-opt", str(options), *overrides], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300
    )
