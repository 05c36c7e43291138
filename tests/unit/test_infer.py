"""Upscaling of files: any size, any mode, seamless tiles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from sr_distill.cli import main
from sr_distill.data.images import read_rgb
from sr_distill.errors import UserError
from sr_distill.infer import find_inputs, output_paths, upscale, upscale_file
from sr_distill.models import build_model, save_model

from ..conftest import architecture, natural_image, small, write_image

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["mobile_sr", "fsrcnn", "ecbsr", "compact"])
def test_tiles_equal_the_whole_image(name):
    """Each of these sees less than 16 pixels far, so with that much context no seam can be seen: not one level differs."""
    model = build_model(small(name), 3).eval()
    image = torch.from_numpy(natural_image(61, 90).transpose(2, 0, 1).copy())
    whole = upscale(model, image, CPU, tile=0)
    assert whole.shape == (3, 183, 270)
    tiled = upscale(model, image, CPU, tile=16, overlap=16)
    assert (whole.int() - tiled.int()).abs().max() <= 1  # the last bit of a sum may round the other way
    assert (whole != tiled).float().mean() < 1e-3


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (33, 2)])
def test_very_small_images(size):
    model = build_model(small("rlfn"), 4).eval()
    assert upscale(model, torch.zeros(3, *size, dtype=torch.uint8), CPU).shape == (3, size[0] * 4, size[1] * 4)


@pytest.fixture
def model():
    return build_model(architecture(type="mobile_sr", num_feat=4, num_block=1), 2).eval()


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("RGB", "RGB"),
        ("L", "L"),
        ("1", "L"),
        ("P", "RGB"),
        ("RGBA", "RGBA"),
        ("LA", "RGBA"),
        ("CMYK", "RGB"),
        ("I;16", "L"),
    ],
)
def test_modes(model, tmp_path, mode, expected):
    image = Image.fromarray(natural_image(12, 10))
    image = (
        Image.fromarray(np.arange(120, dtype=np.uint16).reshape(12, 10) * 500)
        if mode == "I;16"
        else image.convert(mode)
    )
    source = tmp_path / ("in.tif" if mode == "CMYK" else "in.png")
    image.save(source)
    assert upscale_file(model, source, tmp_path / "out.png", CPU, 0) == (20, 24)
    with Image.open(tmp_path / "out.png") as result:
        assert (result.mode, result.size) == (expected, (20, 24))


def test_transparency_is_kept(model, tmp_path):
    rgba = np.dstack([natural_image(12, 10), np.zeros((12, 10), np.uint8)])
    rgba[:, 5:, 3] = 255
    upscale_file(model, write_image(tmp_path / "in.png", rgba), tmp_path / "out.png", CPU, 0)
    alpha = np.array(Image.open(tmp_path / "out.png"))[:, :, 3]
    assert alpha[:, :6].max() == 0
    assert alpha[:, 14:].min() == 255


def test_outputs_never_overwrite_each_other(tmp_path):
    files = [tmp_path / name for name in ("a.png", "a.jpg", "sub/a.png", "b.png")]
    out = output_paths(files, tmp_path, tmp_path / "out", 4)
    names = [path.relative_to(tmp_path / "out").as_posix() for path in out]
    assert names == ["a_png_x4.png", "a_jpg_x4.png", "sub/a_x4.png", "b_x4.png"]


def test_inputs(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        find_inputs(tmp_path / "none.png")
    with pytest.raises(UserError, match="no image found"):
        find_inputs(tmp_path)


@pytest.fixture
def model_file(model, tmp_path):
    save_model(model, tmp_path / "model.safetensors")
    return str(tmp_path / "model.safetensors")


def test_command_upscales_a_folder_and_names_what_it_could_not(tmp_path, model_file, capsys):
    write_image(tmp_path / "in/good.png", natural_image(12, 10))
    (tmp_path / "in/bad.png").write_text("text")
    code = main(
        ["inference", "-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--model", model_file, "--device", "cpu"]
    )
    said = capsys.readouterr()
    assert code == 1
    assert "bad.png: cannot be read as an image" in said.err
    assert "1 of 2 images could not be upscaled" in said.err
    assert "Traceback" not in said.err
    assert read_rgb(tmp_path / "out/good_x2.png").shape == (24, 20, 3)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-i", "{tmp}/none.png", "-o", "{tmp}/out", "--model", "{model}"], "there is no such file"),
        (["-i", "{tmp}", "-o", "{tmp}/out", "--model", "{model}"], "no image found"),
        (["-i", "{tmp}", "-o", "{model}", "--model", "{model}"], "is a file; name a folder"),
        (["-i", "{model}", "-o", "{tmp}/out", "--model", "nothing_x4"], "model not found: nothing_x4"),
        (
            ["-i", "{model}", "-o", "{tmp}/out", "--model", "{model}", "--scale", "4"],
            "is a network for scale 2, but scale 4",
        ),
        (
            ["-i", "{model}", "-o", "{tmp}/out", "--model", "{model}", "--device", "cuda:77"],
            "device 'cuda:77' is not available",
        ),
        (["-i", "{model}", "-o", "{tmp}/out", "--model", "{model}", "--tile", "-1"], "must be 0 or more"),
    ],
)
def test_command_says_what_is_wrong_in_a_sentence(tmp_path, model_file, capsys, arguments, expected):
    arguments = [text.format(tmp=tmp_path, model=model_file) for text in arguments]
    assert main(["inference", *arguments]) == 2
    said = capsys.readouterr()
    assert expected in said.err
    assert said.err.startswith("error: ")
    assert "Traceback" not in said.err
