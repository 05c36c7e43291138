"""Tiles that equal the whole image, how far networks see, and outputs that are stored."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sr_distill.infer import Upscaler, WholeOutputs, upscale
from sr_distill.infer.rows import rows_of
from sr_distill.models import Deployed, ModelSpec, SRModel, Teacher, build_model, self_ensembled
from sr_distill.models.receptive_field import receptive_field
from sr_distill.registry import ARCHITECTURES
from sr_distill.zoo import open_model

from ..conftest import architecture, in_colors, natural_image, small

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


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("how", ["network", "bicubic"])
def test_tiles_equal_the_whole_image_to_float_precision(channels, how):
    """Gray, colour, and either with alpha; some of it opaque, some invisible."""
    model = build_model(small("mobile_sr", color="y"), 2).eval()
    pixels = natural_image(70, 95).astype(np.float32) / 255
    image = np.dstack([pixels, np.clip(np.hypot(*np.mgrid[-35:35, -47:48]) / 8 - 2, 0, 1)]).astype(np.float32)
    image = np.ascontiguousarray(image[:, :, {1: [0], 2: [0, 3], 3: [0, 1, 2], 4: [0, 1, 2, 3]}[channels]])
    whole, tiled = (Upscaler(model, CPU, tile, alpha=how)(rows_of(image)).whole() for tile in (0, 16))
    assert whole.shape == (140, 190, channels)
    np.testing.assert_allclose(tiled, whole, atol=1e-5)


@pytest.mark.parametrize(("name", "options"), in_colors(ARCHITECTURES, "rgb", "y"))
def test_what_is_deployed_is_what_was_trained(name, options):
    model = build_model(small(name, **options), 2).eval()
    for channels in (1, 3):
        image = torch.rand(1, channels, 24, 20)
        with torch.no_grad():
            given = image if channels == 3 or model.spec.color == "y" else image.expand(-1, 3, -1, -1)
            expected, found = model(given), Deployed(model)(image)
        if channels == 3:
            torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
        else:
            luma = (expected * torch.tensor([65.481, 128.553, 24.966]).view(3, 1, 1)).sum(1, keepdim=True) / 219
            torch.testing.assert_close(found, luma if expected.shape[1] == 3 else expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("reparam", ["none", "expand"])
def test_upscaling_leaves_the_model_of_a_training_as_it_is(reparam):
    """Neither frozen, nor in eval mode, nor moved, nor in another layout: a student may be looked at while it learns."""
    model = build_model(small("mobile_sr", reparam=reparam), 2).train()
    strides = [parameter.stride() for parameter in model.parameters()]
    before = upscale(model, torch.rand(3, 12, 12), CPU)
    assert model.training
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert [parameter.stride() for parameter in model.parameters()] == strides
    model(torch.rand(1, 3, 8, 8)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert before.shape == (3, 24, 24)


def test_deployed_takes_images_of_one_pixel():
    model = build_model(small("mobile_sr", color="y"), 4).eval()
    image = torch.rand(1, 3, 1, 1)
    torch.testing.assert_close(Deployed(model)(image), model(image), atol=1e-5, rtol=0)


def test_self_ensemble():
    model = build_model(small("mobile_sr"), 2).eval()
    lr = torch.rand(3, 20, 30)
    with torch.no_grad():
        expected = self_ensembled(model, lr[None])[0].clamp(0, 1)
    sr = Upscaler(model, CPU, 8, self_ensemble=True)(rows_of(lr.permute(1, 2, 0).contiguous().numpy())).whole()
    np.testing.assert_allclose(sr, expected.permute(1, 2, 0).numpy(), atol=1e-5)


def test_opaque_stays_opaque_and_hidden_colour_does_not_show():
    """A red disc on invisible black: no pixel that can be seen is darker or of another colour."""
    model = open_model("mobile_sr_tiny_x2")
    disc = np.zeros((40, 40, 4), np.uint8)
    disc[np.hypot(*np.mgrid[-20:20, -20:20]) < 12] = (200, 30, 30, 255)
    large = Upscaler(model, CPU)(rows_of(disc)).whole()
    plain = Upscaler(model, CPU)(rows_of(np.full((40, 40, 3), (200, 30, 30), np.uint8))).whole()[40, 40].astype(int)
    seen = large[large[:, :, 3] > 0]
    assert (np.abs(seen[:, :3].astype(int) - plain) <= 2).all()
    assert set(large[35:45, 35:45, 3].ravel()) == {255}
    assert set(large[:8, :8, 3].ravel()) == {0}


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
