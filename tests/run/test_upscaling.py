"""Upscaling as people start it: damaged files by the hundred, a large image, the comparison with other ways."""

from __future__ import annotations

import random
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from sr_distill.infer.metadata import Metadata
from sr_distill.infer.picture import size_in_header
from sr_distill.infer.png import write_png
from sr_distill.infer.rows import Rows

from ..conftest import ROOT, natural_image, write_image

pytestmark = pytest.mark.run


@pytest.fixture
def scripts(monkeypatch):
    """The folder scripts/ as a place to import from."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))


@pytest.mark.parametrize(("kind", "count"), [("images", 200), ("videos", 25)])
def test_damaged_files(scripts, kind, count, capsys):
    import soak

    assert soak.main([kind, "--count", str(count), "--batch", str(count), "--seed", "3"]) == 0, capsys.readouterr().err


def _pretend(soak, monkeypatch, tmp_path, act):
    """The check of a batch of one sound image, with a command that only pretends."""
    folder, output = tmp_path / "in", tmp_path / "out"
    source = write_image(folder / "a.png", natural_image(8, 8))

    def run(command, **kwargs):
        output.mkdir()
        write_image(output / "a_x2.png", natural_image(16, 16))
        said = {"returncode": 0, "stdout": f"{output}/a_x2.png (16x16)\n", "stderr": ""} | (act(folder, output) or {})
        return SimpleNamespace(**said)

    monkeypatch.setattr(soak.subprocess, "run", run)
    return soak.check_batch(folder, output, [source], False, 10)[1]


def _hang(folder, output):
    raise subprocess.TimeoutExpired("inference", 10)


@pytest.mark.parametrize(
    ("act", "noticed"),
    [
        (lambda folder, output: None, ""),
        (lambda folder, output: {"returncode": -11}, "exit code -11"),
        (lambda folder, output: {"stderr": "Traceback (most recent call last)"}, "a traceback"),
        (lambda folder, output: {"stdout": ""}, "0 results and 0 errors"),
        (lambda folder, output: {"stderr": f"error: {folder}/a.png: no"}, "1 results and 1 errors"),
        (lambda folder, output: (output / ".writing-x").touch(), "left behind"),
        (lambda folder, output: (folder / "a.png").write_bytes(b"other") and None, "was changed"),
        (lambda folder, output: write_image(output / "a_x2.png", natural_image(15, 16)) and None, "the result has"),
        (_hang, "no end within"),
    ],
)
def test_the_soak_notices(scripts, monkeypatch, tmp_path, act, noticed):
    import soak

    if noticed == "was changed":
        monkeypatch.setattr(soak, "_damage", lambda *args: [])
    problems = _pretend(soak, monkeypatch, tmp_path, act)
    assert any(noticed in problem for problem in problems) if noticed else problems == []


def test_mutations_change_files_and_repeat_themselves(scripts):
    import soak

    def made(seed):
        rng = random.Random(seed)
        return [mutate(rng, bytes(range(256)) * 3) for mutate in soak.MUTATIONS]

    assert made(1) == made(1) != made(2)
    assert sum(data != bytes(range(256)) * 3 for data in made(1)) >= len(soak.MUTATIONS) - 2


def test_memory_of_a_large_image_is_that_of_its_input_and_a_band(tmp_path):
    """The result has 230 megabytes; the process may take a tenth of that beside its input."""

    def peak(height):
        strip = np.tile(natural_image(64, 400), (1, 8, 1))
        image = Rows(
            height, 3200, 3, strip.dtype, lambda: (strip[: min(64, height - row)] for row in range(0, height, 64))
        )
        with (tmp_path / f"{height}.png").open("wb") as file:
            write_png(file, image, Metadata())
        code = (
            "import resource, sys; from sr_distill.cli import main; "
            "code = main(sys.argv[1:]); print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024); sys.exit(code)"
        )
        arguments = [
            "inference",
            "-i",
            tmp_path / f"{height}.png",
            "-o",
            tmp_path / "out",
            "--model",
            "mobile_sr_tiny_x4",
            "--device",
            "cpu",
        ]
        command = [sys.executable, "-c", code, *map(str, arguments), "--threads", "1"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        assert size_in_header(tmp_path / f"out/{height}_x4.png") == (height * 4, 12800)
        return float(done.stdout.split()[-1])

    assert peak(1500) - peak(512) < 40 + (1500 - 512) * 3200 * 4 / 2**20


def test_ways_to_upscale_give_the_same_image(scripts, tmp_path):
    import upscaling

    upscaling._make(tmp_path / "in", 2, 50, 40)
    for way in ("ours", "plain", "spandrel"):
        command = [
            sys.executable,
            str(ROOT / "scripts/upscaling.py"),
            "--work",
            way,
            "--source",
            str(tmp_path / "in"),
            "--output",
            str(tmp_path / way),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        assert "RESULT {" in done.stdout, done.stderr
    for ours, theirs, others in zip(*(sorted((tmp_path / way).iterdir()) for way in ("ours", "plain", "spandrel"))):
        one, two, three = (np.asarray(Image.open(path)).astype(int) for path in (ours, theirs, others))
        assert one.shape == (100, 80, 3)
        assert np.abs(one - two).max() <= 1
        assert np.abs(one - three).max() <= 1
