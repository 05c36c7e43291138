"""The command that upscales: what it does with a folder, and what it says."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

import sr_distill as sd
from sr_distill.cli import main
from sr_distill.infer import (
    open_picture,
    upscale,
)
from sr_distill.models import build_model, save_model

from ..conftest import ROOT, architecture, heed_ctrl_c, natural_image, small, write_image

CPU = torch.device("cpu")


@pytest.fixture
def model_file(tmp_path):
    save_model(build_model(architecture(type="mobile_sr", num_feat=4, num_block=1), 2), tmp_path / "model.safetensors")
    return str(tmp_path / "model.safetensors")


@pytest.fixture
def run(tmp_path, model_file):
    """The command with a small model on the CPU; paths are below tmp_path."""

    def run(inputs, output, *more):
        paths = [str(tmp_path / path) for path in inputs.split()]
        return main(
            ["inference", "-i", *paths, "-o", str(tmp_path / output), "--model", model_file, "--device", "cpu", *more]
        )

    return run


def test_a_folder_is_upscaled_and_what_could_not_be_is_named_at_the_end(tmp_path, run, model_file, capsys):
    write_image(tmp_path / "in/good.png", natural_image(12, 10))
    (tmp_path / "in/bad.png").write_text("text")
    write_image(tmp_path / "in/other.png", natural_image(12, 10))
    assert run("in", "out") == 1
    said = capsys.readouterr()
    lines = said.err.strip().splitlines()
    assert "bad.png: cannot be read as an image" in lines[-2]
    assert lines[-1] == "1 of 3 files could not be upscaled."
    assert "2 done, 0.0 megapixels in" in said.err
    assert "Traceback" not in said.err
    expected = upscale(sd.open_model(model_file), torch.from_numpy(natural_image(12, 10)).permute(2, 0, 1), CPU)
    for name in ("good", "other"):
        np.testing.assert_array_equal(
            open_picture(tmp_path / f"out/{name}_x2.png").rows.whole(), expected.permute(1, 2, 0)
        )


def test_a_second_run_does_what_is_missing(tmp_path, run, capsys):
    for name in "abc":
        write_image(tmp_path / f"in/{name}.png", natural_image(8, 8))
    assert run("in", "out") == 0
    (tmp_path / "out/b_x2.png").unlink()
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    capsys.readouterr()
    assert run("in", "out") == 0
    assert "2 of 3 results are there already" in capsys.readouterr().err
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    assert (tmp_path / "out/b_x2.png").exists()
    assert run("in", "out", "--overwrite") == 0
    assert all(path.stat().st_mtime_ns != stamp for path, stamp in stamps.items())


def test_options(tmp_path, run, capsys):
    write_image(tmp_path / "in/sub/a.png", natural_image(12, 10))
    write_image(tmp_path / "in/b.png", natural_image(12, 10))
    assert (
        run(
            "in",
            "out",
            "--recursive",
            "--format",
            "webp",
            "--suffix",
            "_big",
            "--scale",
            "3",
            "--self-ensemble",
            "--tile",
            "8",
        )
        == 0
    )
    assert sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")) == [
        "b_big.webp",
        "sub/a_big.webp",
    ]
    assert "x3 is made by x2, then x2, then shrunk" in capsys.readouterr().err
    with Image.open(tmp_path / "out/b_big.webp") as image:
        assert image.size == (30, 36)
    assert (
        run("in/b.png", "small.tif", "--scale", "x6", "--alpha", "bicubic", "--precision", "bf16", "--threads", "1")
        == 0
    )
    with Image.open(tmp_path / "small.tif") as image:
        assert image.size == (5, 6)


def test_standard_input_and_output(tmp_path, model_file):
    data = io.BytesIO()
    Image.fromarray(natural_image(12, 10)).save(data, "JPEG")
    command = [
        sys.executable,
        ROOT / "scripts/inference.py",
        "-i",
        "-",
        "-o",
        "-",
        "--model",
        model_file,
        "--device",
        "cpu",
    ]
    done = subprocess.run(command, input=data.getvalue(), capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert open_picture(done.stdout).rows.whole().shape == (24, 20, 3)
    done = subprocess.run(command, input=b"nothing", capture_output=True)
    assert done.returncode == 1
    assert b"standard input: cannot be read as an image" in done.stderr
    assert done.stdout == b""


def test_an_animation_stays_one(tmp_path, run):
    frames = [Image.fromarray(natural_image(12, 10)).rotate(angle) for angle in (0, 90, 180)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=[100, 200, 300], loop=0)
    assert run("a.gif", "out", "--format", "same") == 0
    picture = open_picture(tmp_path / "out/a_x2.gif")
    assert [frame.duration for frame in picture.frames] == [100, 200, 300]
    assert picture.rows.whole().shape[:2] == (24, 20)
    assert run("a.gif", "out", "--format", "jpg") == 1


def test_tiles_that_may_differ_are_said_once(tmp_path, capsys):
    save_model(build_model(small("rcan"), 2), tmp_path / "rcan.safetensors")
    for name in "abc":
        write_image(tmp_path / "in" / f"{name}.png", natural_image(9, 150))
    where = ["-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--model", str(tmp_path / "rcan.safetensors")]
    assert main(["inference", *where, "--device", "cpu", "--tile", "16"]) == 0
    assert capsys.readouterr().err.count("note: rcan sees more of an image than a tile shows it") == 1
    assert main(["inference", *where, "--device", "cpu", "--overwrite"]) == 0
    assert "note: " not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-i", "{tmp}/none.png", "-o", "{tmp}/out"], "there is no such file"),
        (["-i", "{tmp}/empty", "-o", "{tmp}/out"], "no image found"),
        (["-i", "{model}", "-o", "{tmp}/a.jp2"], "results are .png, .jpg, .webp"),
        (["-i", "{model}", "-o", "{tmp}/out", "--model", "nothing_x4"], "model not found: nothing_x4"),
        (["-i", "{model}", "-o", "{tmp}/out", "--scale", "two"], "--scale two: give a factor"),
        (["-i", "{model}", "-o", "{tmp}/out", "--device", "cuda:77"], "device 'cuda:77' is not available"),
        (["-i", "{model}", "{model}", "-o", "-"], "is one file"),
    ],
)
def test_what_is_wrong_is_a_sentence(tmp_path, model_file, capsys, arguments, expected):
    (tmp_path / "empty").mkdir()
    arguments = [text.format(tmp=tmp_path, model=model_file) for text in arguments]
    arguments = arguments if "--model" in arguments else [*arguments, "--model", model_file]
    if expected == "is one file":
        arguments[2] = str(write_image(tmp_path / "b.png", natural_image(8, 8)))
    assert main(["inference", *arguments]) == 2
    said = capsys.readouterr()
    assert expected in said.err
    assert said.err.startswith("error: ")
    assert "Traceback" not in said.err


def test_a_full_disk_leaves_nothing_behind(tmp_path, run, capsys, monkeypatch):
    write_image(tmp_path / "in/a.png", natural_image(12, 10))
    write_image(tmp_path / "in/b.png", natural_image(12, 10))
    module = sys.modules["sr_distill.infer.batch"]
    write = module.write_picture

    def full(file, picture, kind):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_picture", full)
    assert run("in", "out") == 1
    said = capsys.readouterr().err
    assert said.count("No space left on device") == 2
    assert list((tmp_path / "out").iterdir()) == []
    monkeypatch.setattr(module, "write_picture", write)
    assert run("in", "out") == 0


def test_ctrl_c_leaves_only_whole_files(tmp_path, model_file):
    for index in range(40):
        write_image(tmp_path / "in" / f"{index:02d}.png", natural_image(150, 200))
    command = [
        sys.executable,
        ROOT / "scripts/inference.py",
        "-i",
        tmp_path / "in",
        "-o",
        tmp_path / "out",
        "--model",
        model_file,
    ]
    process = subprocess.Popen(
        [*command, "--device", "cpu", "--scale", "8"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=heed_ctrl_c,
    )
    deadline = time.time() + 60
    while not list((tmp_path / "out").glob("[0-9]*.png")) and time.time() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    made = list((tmp_path / "out").iterdir())
    assert 0 < len(made) < 40
    for path in made:
        assert open_picture(path).rows.whole().shape == (1200, 1600, 3)


def test_a_file_without_permission(tmp_path, run, capsys):
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    write_image(tmp_path / "a.png", natural_image(8, 8)).chmod(0)
    assert run("a.png", "out") == 1
    assert "a.png: cannot be read" in capsys.readouterr().err
