"""Upscaling of files: any size, any mode, seamless tiles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sr_distill.cli import main
from sr_distill.data.images import read_rgb
from sr_distill.errors import UserError
from sr_distill.infer import WholeOutputs, find_inputs, output_paths, upscale, upscale_file
from sr_distill.models import ModelSpec, SRModel, Teacher, build_model, save_model
from sr_distill.models.receptive_field import receptive_field

from ..conftest import architecture, natural_image, small, write_image

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["mobile_sr", "fsrcnn", "ecbsr", "compact", "swinir", "carn_m"])
def test_tiles_equal_the_whole_image(name):
    """With as much context as the network sees no seam can be seen: not one level differs."""
    model = build_model(small(name), 3).eval()
    _tiles_equal_the_whole(model, natural_image(61, 90), tile=15)


def test_tiles_of_a_network_that_sees_far_equal_the_whole_image():
    _tiles_equal_the_whole(_deep(), natural_image(20, 150), tile=16)


def _tiles_equal_the_whole(model, pixels, tile):
    image = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
    calls, whole = [], upscale(model, image, CPU, tile=0)
    assert whole.shape == (3, *(side * model.spec.scale for side in image.shape[1:]))
    with model.register_forward_hook(lambda *args: calls.append(1)):
        tiled = upscale(model, image, CPU, tile, say=pytest.fail)
    assert len(calls) > 4
    assert (whole.int() - tiled.int()).abs().max() <= 1  # the last bit of a sum may round the other way
    assert (whole != tiled).float().mean() < 1e-3


class _Mean(torch.nn.Module):
    """Attention of the simplest kind: the mean over the image."""

    def forward(self, x):
        return x + 0.5 * x.mean((-2, -1), keepdim=True)


def _deep():
    """40 convolutions that move the image by a pixel each, forth and back, so that what is far away is not faint."""
    layers = []
    for index in range(40):
        conv = torch.nn.Conv2d(3, 3, 3, padding=1, groups=3, bias=False)
        with torch.no_grad():
            conv.weight.copy_(torch.tensor([[0, 0, 0], [0.5, 0, 0.5] if index % 2 else [0.9, 0, 0.1], [0, 0, 0.0]]))
        layers.append(conv)
    return SRModel(torch.nn.Sequential(*layers, torch.nn.Upsample(scale_factor=2)), ModelSpec("deep", 2)).eval()


def test_a_network_that_sees_the_whole_image_says_so_when_it_is_cut():
    image = torch.from_numpy(natural_image(20, 150).transpose(2, 0, 1).copy())
    model = SRModel(torch.nn.Sequential(_Mean(), torch.nn.Upsample(scale_factor=2)), ModelSpec("mean", 2))
    said = []
    assert upscale(model, image, CPU, tile=16, say=said.append).shape == (3, 40, 300)
    assert len(said) == 1
    assert "mean sees more of an image than a tile shows it" in said[0]
    upscale(model, image, CPU, tile=0, say=pytest.fail)
    upscale(model, image, CPU, tile=150, say=pytest.fail)


@pytest.mark.parametrize(
    ("name", "options", "radius"),
    [
        ("mobile_sr", {"num_feat": 8, "num_block": 1}, 4),
        ("fsrcnn", {"color": "rgb"}, 8),
        ("fsrcnn", {"color": "y"}, 8),
        ("swinir", {"embed_dim": 8, "depths": [2], "num_heads": [2], "window_size": 4}, 9),
        ("rcan", {"num_feat": 16, "num_group": 1, "num_block": 1}, None),
        ("imdn", {"num_feat": 16, "num_block": 1}, None),
        ("rlfn", {"num_feat": 8, "num_block": 1}, None),  # its attention is resized to the image
    ],
)
def test_how_far_networks_see(name, options, radius):
    model = build_model(architecture(type=name, **options), 2)
    assert receptive_field(model) == radius


def test_the_receptive_field_of_convolutions():
    def field(*sizes, dilation=1, **spec):
        layers = [torch.nn.Conv2d(3, 3, size, padding="same", dilation=dilation) for size in sizes]
        layers = [layer for conv in layers for layer in (conv, torch.nn.ReLU())]  # at random weights some are dead
        net = torch.nn.Sequential(*layers, torch.nn.Upsample(scale_factor=2))
        return receptive_field(SRModel(net, ModelSpec("net", 2, **spec)))

    assert field() == 0
    assert field(1, 1) == 0
    assert field(3, 3, 5) == 4
    assert field((1, 9)) == field((9, 1)) == 4  # along either side
    assert field(*[3] * 40) == 40
    assert field(*[3] * 40, size_multiple=8, min_size=30) == 40
    assert field(3, 3, 3, 3, dilation=62) == 248
    assert field(3, 3, 3, 3, dilation=65) is None  # further than anybody would pay for


def test_measuring_leaves_no_trace():
    model = build_model(small("mobile_sr"), 2).train()
    model.autocast = torch.bfloat16
    before, random = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    assert receptive_field(model) == receptive_field(model.renamed("other"))
    assert torch.equal(random, torch.get_rng_state())
    assert model.training
    assert model.autocast is torch.bfloat16
    assert all(p.grad is None and p.requires_grad and p.dtype == torch.float32 for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_stored_outputs_are_those_of_whole_images_in_full_precision():
    teacher = Teacher(build_model(small("rlfn"), 2))
    image = torch.from_numpy(natural_image(20, 420).transpose(2, 0, 1).copy())
    expected = upscale(teacher, image, CPU, tile=0)
    assert not torch.equal(upscale(teacher, image, CPU, say=str), expected)  # it can be seen
    teacher.model.autocast = torch.bfloat16
    assert torch.equal(WholeOutputs(teacher, CPU).whole(image), expected)
    assert teacher.model.autocast is torch.bfloat16


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory."), MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
    ids=["cuda", "python", "cpu"],
)  # fmt: skip
def test_tiles_only_where_memory_forces_them(error):
    class Hungry(torch.nn.Module):
        def forward(self, x):
            tried.append(x.shape[-1])
            if x.shape[-1] > 400:
                raise error
            return x.repeat_interleave(2, -1).repeat_interleave(2, -2)

    tried, outputs = [], WholeOutputs(Teacher(SRModel(Hungry(), ModelSpec("hungry", 2))), CPU)
    images = {width: torch.randint(0, 256, (3, 8, width), dtype=torch.uint8) for width in (100, 500, 600)}
    assert torch.equal(outputs.whole(images[100]), images[100].repeat_interleave(2, 1).repeat_interleave(2, 2))
    for width in (500, 600):
        with pytest.raises(MemoryError):
            outputs.whole(images[width])
    assert tried == [100, 500]  # a larger one is not tried
    how, tiled = outputs.in_tiles()
    assert how == "in tiles of 256 with a context of 0"
    assert torch.equal(tiled(images[500]), images[500].repeat_interleave(2, 1).repeat_interleave(2, 2))


def test_other_errors_of_a_teacher_go_on():
    class Broken(torch.nn.Module):
        def forward(self, x):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        WholeOutputs(Teacher(SRModel(Broken(), ModelSpec("broken", 2))), CPU).whole(torch.zeros(3, 4, 4))


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
    files = {tmp_path / name: Path(name) for name in ("a.png", "a.jpg", "sub/a.png", "b.png")}
    out = output_paths(files, tmp_path / "out", 4).values()
    names = [path.relative_to(tmp_path / "out").as_posix() for path in out]
    assert names == ["a_png_x4.png", "a_jpg_x4.png", "sub/a_x4.png", "b_x4.png"]


def test_inputs(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        find_inputs([tmp_path / "none.png"])
    with pytest.raises(UserError, match="no image found"):
        find_inputs([tmp_path])
    write_image(tmp_path / "a.png", natural_image(8, 8))
    (tmp_path / "b.gif").touch()
    (tmp_path / "c.jp2").touch()
    files, notes = find_inputs([tmp_path, tmp_path / "a.png"])
    assert list(files.values()) == [Path("a.png")]
    assert "2 file(s) there are not read as images (b.gif, c.jp2)" in notes[0]


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


def test_command_says_once_that_tiles_may_differ(tmp_path, capsys):
    save_model(build_model(small("rcan"), 2), tmp_path / "rcan.safetensors")
    for name in "abc":
        write_image(tmp_path / "in" / f"{name}.png", natural_image(9, 150))
    where = ["-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--model", str(tmp_path / "rcan.safetensors")]
    assert main(["inference", *where, "--device", "cpu", "--tile", "16"]) == 0
    assert capsys.readouterr().err.count("note: rcan sees more of an image than a tile shows it") == 1
    assert main(["inference", *where, "--device", "cpu"]) == 0
    assert "note: " not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-i", "{tmp}/none.png", "-o", "{tmp}/out", "--model", "{model}"], "there is no such file"),
        (["-i", "{tmp}", "-o", "{tmp}/out", "--model", "{model}"], "no image found"),
        (["-i", "{model}", "-o", "{model}", "--model", "{model}"], "results are PNG files; name a .png, or a folder"),
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
