"""How large a result is, and which networks make it so."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from sr_distill.data.bicubic import imresize
from sr_distill.errors import UserError
from sr_distill.infer import (
    Enlarger,
    Scale,
    Upscaler,
    Upscalers,
    parse_scale,
)
from sr_distill.infer.resize import resized
from sr_distill.infer.rows import rows_of
from sr_distill.infer.scale import passes
from sr_distill.models import bicubic_model, build_model
from sr_distill.zoo import family

from ..conftest import natural_image, small

CPU = torch.device("cpu")


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
     ([2, 3, 4], 6, [2, 3]), ([2, 3, 4], 5, [2, 3]), ([2, 3, 4], 9, [3, 3]), ([2, 3, 4], 7, [2, 4]),
     ([3], 3.0000000001, [3]), ([2, 4], 1, []), ([2, 4], 0.5, []), ([2, 4], 64, [4, 4, 4])],
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
    for size in ("tiny", "base", "large"):
        assert family(f"mobile_sr_{size}_x4") == {scale: f"mobile_sr_{size}_x{scale}" for scale in (2, 3, 4)}
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
