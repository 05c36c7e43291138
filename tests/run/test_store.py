"""Several processes that store pairs and teachers' outputs together."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from ..conftest import ROOT, natural_image, write_image

pytestmark = pytest.mark.run

PROGRAM = """
import json, os, sys
from pathlib import Path
import numpy as np
import torch
from sr_distill.data import open_pairs, packed
from sr_distill.errors import UserError
from sr_distill.options.sections import SourceOptions

work, rank = Path(sys.argv[1]), int(os.environ["RANK"])
decoded, upscaled, said = [], [], {}
read = packed.read_rgb
packed.read_rgb = lambda path: decoded.append(path.name) or read(path)

def run(folder, on_unreadable="stop"):
    return open_pairs([SourceOptions(hr=str(work / folder))], 2, 8, work / "cache", on_unreadable)

def upscale(lr):
    upscaled.append(int(lr[0, 0, 0]))
    return lr.repeat_interleave(2, 1).repeat_interleave(2, 2)

def fails(lr):
    if rank == 1:
        raise UserError("no room for the teacher")
    return upscale(lr)

def small_only(lr):
    if lr.shape[-1] > 12:
        raise MemoryError
    return upscale(lr)

def attempt(name, work):
    try:
        said[name] = work()
    except UserError as error:
        said[name] = str(error)

store = run("good")
said["decoded"] = list(decoded)
attempt("failed", lambda: store.add_teacher("teacher", "x", fails))
upscaled.clear()
store.add_teacher("teacher", "x", upscale)
said["upscaled"] = len(upscaled)
said["in tiles"] = store.add_teacher("other", "y", small_only, in_tiles=lambda: ("in tiles", upscale))
said["names"], said["scale"] = store.names, store.scale
said["whole"] = all(np.array_equal(o, lr.repeat(2, 0).repeat(2, 1)) for t in store.teachers.values() for o, lr in zip(t, store.lr))
said["hr"] = [int(hr.astype(int).sum()) for hr in store.hr]
attempt("bad", lambda: run("bad"))
said["skipped"] = run("bad", "skip").skipped
(work / f"said_{rank}.json").write_text(json.dumps(said))
torch.distributed.destroy_process_group()  # without it gloo's threads may abort a process that ends
"""


def test_processes_share_the_work_and_get_the_same(tmp_path):
    for index in range(6):
        write_image(tmp_path / f"good/p{index}.png", natural_image(20, 20 + 2 * index, seed=index))
    write_image(tmp_path / "bad/p3.png", natural_image(20, 20))
    for name in ("p1.png", "p2.png", "p4.png"):
        (tmp_path / "bad" / name).write_text("the same text")
    (tmp_path / "program.py").write_text(PROGRAM)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launcher, str(tmp_path / "program.py"), str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"said_{rank}.json").read_text()) for rank in range(2))
    assert (first.pop("decoded"), second.pop("decoded")) == (
        ["p0.png", "p2.png", "p4.png"],
        ["p1.png", "p3.png", "p5.png"],
    )
    # The first process stored its three before it heard that the second had failed.
    assert (first.pop("upscaled"), second.pop("upscaled")) == (2, 1)
    assert first == second
    assert first["failed"] == "no room for the teacher"
    assert first["names"] == [f"p{index}.png" for index in range(6)]
    assert first["hr"] == [natural_image(20, 20 + 2 * i, seed=i).astype(int).sum() for i in range(6)]
    assert first["whole"]
    assert first["in tiles"] == 3
    assert first["bad"].startswith("3 training image(s) cannot be used")
    assert [f"{reason.split(':')[0]}" for reason in first["skipped"]] == [
        str(tmp_path / "bad" / name) for name in ("p1.png", "p2.png", "p4.png")
    ]
    assert first["bad"].splitlines()[1:] == [f"  {reason}" for reason in first["skipped"]]
    assert len(list((tmp_path / "cache/images").glob("*.bin"))) == 2  # one of each process: "bad" holds nothing new
