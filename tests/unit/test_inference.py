"""The command that upscales: which files, to where, how large, and what is said."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sr_distill as sd
from sr_distill.cli import main
from sr_distill.data.bicubic import imresize
from sr_distill.errors import UserError
from sr_distill.infer import (
    Enlarger,
    Scale,
    Upscaler,
    Upscalers,
    find_inputs,
    jobs_for,
    open_picture,
    parse_scale,
    upscale,
)
from sr_distill.infer.resize import resized
from sr_distill.infer.rows import rows_of
from sr_distill.infer.scale import passes
from sr_distill.models import bicubic_model, build_model, save_model
from sr_distill.zoo import family

from ..conftest import ROOT, architecture, natural_image, small, write_image

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


# Which files


def test_inputs(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        find_inputs([tmp_path / "none.png"])
    with pytest.raises(UserError, match="no image found"):
        find_inputs([tmp_path])
    (tmp_path / "pipe").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="neither a file nor a folder"):
        find_inputs([tmp_path / "pipe"])
    write_image(tmp_path / "a.png", natural_image(8, 8))
    write_image(tmp_path / "sub/deep/b.png", natural_image(8, 8))
    for name in ("film.mp4", "c.txt", ".hidden.png"):
        (tmp_path / name).touch()
    files, notes = find_inputs([tmp_path, tmp_path / "a.png"])
    assert list(files.values()) == [Path("a.png")]
    assert "3 file(s) there are not read as images (c.txt, film.mp4, pipe)" in notes[0]
    assert "1 image(s) in folders below it are left out (--recursive" in notes[1]
    files, _ = find_inputs([tmp_path], recursive=True)
    assert list(files.values()) == [Path("a.png"), Path("sub/deep/b.png")]


def test_a_folder_that_contains_itself_is_searched_once(tmp_path):
    write_image(tmp_path / "a.png", natural_image(8, 8))
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "dir.png").mkdir()
    (tmp_path / "self.png").symlink_to(tmp_path / "self.png")
    files, _ = find_inputs([tmp_path], recursive=True)
    assert list(files) == [tmp_path / "a.png"]


# To where


def _targets(names, output, kind=None, label="_x3"):
    return [job.target for job in jobs_for({Path(k): Path(v) for k, v in names.items()}, output, label, kind)[0]]


def test_names_of_results():
    out = Path("out")
    names = {f"in/{name}": name for name in ("a.png", "a.jpg", "b.c.png", "deep/a.png")}
    assert _targets(names, out) == [
        out / name for name in ["a_png_x3.png", "a_jpg_x3.png", "b.c_x3.png", "deep/a_x3.png"]
    ]
    two = {"one/a.png": "a.png", "two/a.png": "a.png", "two/b.png": "b.png"}
    assert _targets(two, out, label="_x4") == [out / "a_png_x4.png", out / "a_png_x4_2.png", out / "b_x4.png"]
    same = {f"in/{name}": name for name in ("a.PNG", "a.jpeg", "b.tiff", "c.jp2", "d.mov", "e.avi")}
    assert [path.name for path in _targets(same, out, "same", "")] == [
        "a.png",
        "a.jpg",
        "b.tif",
        "c.png",
        "d.mov",
        "e.mkv",
    ]


def test_a_result_may_be_named(tmp_path):
    def only(source, target, kind=None):
        return jobs_for({tmp_path / source: Path(source)}, tmp_path / target, "_x4", kind)[0][0]

    job = only("a.jpg", "large.webp")
    assert (job.target, job.kind) == (tmp_path / "large.webp", "webp")
    assert only("a.mp4", "large.mkv").kind == ".mkv"
    for source, target, kind, said in (
        ("a.png", "a.png", None, "is the image itself"),
        ("a.png", "b.jp2", None, "results are .png, .jpg"),
        ("a.png", "b.mp4", None, "the result of .*a.png is an image"),
        ("a.mp4", "b.png", None, "is a video"),
        ("a.png", "b.png", "jpg", "is no jpg, which --format asks for"),
    ):
        with pytest.raises(UserError, match=said):
            only(source, target, kind)
    with pytest.raises(UserError, match="one file, and there are 2 images"):
        jobs_for(
            {tmp_path / "a.jpg": Path("a.jpg"), tmp_path / "b.jpg": Path("b.jpg")}, tmp_path / "large.png", "", None
        )
    (tmp_path / "there.png").touch()
    with pytest.raises(UserError, match="is there already: --overwrite"):
        only("a.png", "there.png")


def test_what_an_earlier_run_made_in_the_same_folder_is_left_alone(tmp_path):
    for name in ("a.png", "a_x4.png", "b_x4.png"):
        (tmp_path / name).touch()
    names = {tmp_path / name: Path(name) for name in ("a.png", "a_x4.png", "b_x4.png")}
    jobs, notes = jobs_for(names, tmp_path, "_x4", None)
    assert [job.source.name for job in jobs] == ["b_x4.png"]  # a_x4.png is there
    assert len(notes) == 2
    assert [job.source.name for job in jobs_for(names, tmp_path, "_x4", None, overwrite=True)[0]] == [
        "a.png",
        "b_x4.png",
    ]
    assert len(jobs_for(names, tmp_path / "out", "_x4", None)[0]) == 3


# How large


@pytest.mark.parametrize(
    ("text", "size", "label"),
    [("2", (200, 300), "x2"), ("1.5", (150, 225), "x1.5"), ("4e0", (400, 600), "x4"), ("1920x1080", (1080, 1920), "1920x1080"),
     ("75X", (50, 75), "75x"), ("x300", (300, 450), "x300"), ("0.001", (1, 1), "x0.001")],
)  # fmt: skip
def test_sizes(text, size, label):
    scale = parse_scale(text)
    assert scale.size_of(100, 150) == size
    assert scale.label == label


@pytest.mark.parametrize("text", ["", "x", "0", "-2", "nan", "inf", "0x10", "two", "2x3x4", "65"])
def test_sizes_that_are_none(text):
    with pytest.raises(UserError, match="give a factor up to 64"):
        parse_scale(text)


@pytest.mark.parametrize(
    ("available", "factor", "expected"),
    [([2, 4], 2, [2]), ([2, 4], 1.5, [2]), ([2, 4], 3, [4]), ([4], 2, [4]), ([2, 4], 8, [2, 4]), ([4], 8, [4, 4]), ([2], 8, [2, 2, 2]),
     ([2, 3, 4], 6, [2, 4]), ([3], 3.0000000001, [3]), ([2, 4], 1, []), ([2, 4], 0.5, []), ([2, 4], 64, [4, 4, 4])],
)  # fmt: skip
def test_passes(available, factor, expected):
    assert passes(available, factor) == expected


def _enlarger(scales, wanted, tile=0, **options):
    upscalers = Upscalers(scales, lambda scale: Upscaler(bicubic_model(scale), CPU, tile))
    return Enlarger(upscalers, wanted, **options)


def test_several_passes_are_the_networks_one_after_the_other():
    pixels = natural_image(20, 30)
    floats = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    expected = imresize(imresize(floats, 2).clamp(0, 1), 4).clamp(0, 1)
    found = _enlarger([2, 4], Scale(8.0)).rows(rows_of(pixels), np.float32).whole()
    np.testing.assert_allclose(found, expected.permute(1, 2, 0), atol=1e-5)
    for tile in (0, 16):
        bytes_ = _enlarger([2, 4], Scale(8.0), tile).rows(rows_of(pixels)).whole()
        np.testing.assert_allclose(bytes_, found * 255, atol=0.51)


def test_other_scales_are_antialiased_bicubic_of_the_next():
    pixels = natural_image(20, 30)
    large = imresize(torch.from_numpy(pixels).permute(2, 0, 1).float() / 255, 2).clamp(0, 1)
    found = _enlarger([2, 4], Scale(1.5)).rows(rows_of(pixels), np.float32).whole()
    np.testing.assert_allclose(found, imresize(large, 0.75).clamp(0, 1).permute(1, 2, 0), atol=1e-5)
    assert _enlarger([2, 4], Scale(width=17, height=50)).rows(rows_of(pixels)).whole().shape == (50, 17, 3)


def test_resizing_by_bands_is_resizing_at_once():
    pixels = np.random.default_rng(0).random((300, 40, 3), np.float32)
    expected = imresize(torch.from_numpy(pixels).permute(2, 0, 1).double(), 0.5).clamp(0, 1).permute(1, 2, 0)
    np.testing.assert_allclose(resized(rows_of(pixels), 150, 20, np.float32).whole(), expected, atol=1e-6)


def test_resizing_does_not_let_invisible_colour_in():
    pixels = np.zeros((40, 40, 4), np.uint8)
    pixels[:, 20:] = (250, 200, 100, 255)
    found = resized(rows_of(pixels), 17, 17, np.uint8).whole()
    seen = found[found[:, :, 3] > 0]
    assert (np.abs(seen[:, :3].astype(int) - (250, 200, 100)) <= 1).all()


def test_how_a_size_is_made_is_said():
    said = []
    enlarger = _enlarger([2, 4], Scale(3.0), say=said.append)
    enlarger.rows(rows_of(natural_image(8, 8))).whole()
    _enlarger([2, 4], Scale(2.0), say=said.append).rows(rows_of(natural_image(8, 8)))
    _enlarger([4], Scale(8.0), say=said.append).rows(rows_of(natural_image(8, 8)))
    _enlarger([4], Scale(0.5), say=said.append).rows(rows_of(natural_image(8, 8)))
    assert said == ["x3 is made by x4, then shrunk to x3 by antialiased bicubic.",
                    "x8 is made by x4, then x4, then shrunk to x8 by antialiased bicubic.",
                    "x0.5 makes it no larger: no network is asked."]  # fmt: skip
    with pytest.raises(UserError, match="times the size of 1x1"):
        _enlarger([4], Scale(width=100)).rows(rows_of(natural_image(1, 1)))


def test_a_texture_goes_on_at_its_other_end():
    pixels = natural_image(30, 44)
    model = build_model(small("mobile_sr"), 2).eval()
    enlarger = Enlarger(Upscalers([2], lambda scale: Upscaler(model, CPU, 16)), Scale(4.0), seamless=True)
    large = enlarger.rows(rows_of(pixels)).whole()
    moved = enlarger.rows(rows_of(np.roll(pixels, (7, 11), (0, 1)))).whole()
    assert large.shape == (120, 176, 3)
    assert np.abs(np.roll(large, (28, 44), (0, 1)).astype(int) - moved).max() <= 1
    with pytest.raises(UserError, match="--seamless needs a scale"):
        Enlarger(Upscalers([2], lambda scale: Upscaler(model, CPU)), Scale(3.0), seamless=True).rows(rows_of(pixels))


def test_families_of_the_zoo():
    assert family("mobile_sr_tiny_x4") == {2: "mobile_sr_tiny_x2", 4: "mobile_sr_tiny_x4"}
    assert family("mobile_sr_tiny_x2_perceptual") == {
        2: "mobile_sr_tiny_x2_perceptual",
        4: "mobile_sr_tiny_x4_perceptual",
    }
    assert family("edsr_x4") == {4: "edsr_x4"}
    assert family("other.safetensors") == family("nothing_x4") == {}


def test_only_the_networks_that_are_needed_are_opened():
    opened = []

    def prepare(scale):
        opened.append(scale)
        return Upscaler(bicubic_model(scale), CPU)

    Enlarger(Upscalers([2, 4], prepare), Scale(2.0)).rows(rows_of(natural_image(8, 8))).whole()
    assert opened == [2]


def test_threads_that_need_a_network_at_once_get_the_same():
    """Opened twice, its weights would be moved by one thread while another computes with them."""
    opened = []

    def prepare(scale):
        time.sleep(0.05)
        opened.append(scale)
        return Upscaler(bicubic_model(scale), CPU)

    upscalers = Upscalers([2], prepare)
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(lambda index: id(upscalers[2]), range(4)))) == 1
    assert opened == [2]


# The command


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
        [*command, "--device", "cpu", "--scale", "8"], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
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
