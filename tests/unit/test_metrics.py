"""Metrics: what a table says of each, what each refuses, and numbers that can be worked out by hand."""

from __future__ import annotations

import math
import re

import pytest
import torch

from sr_distill.errors import UserError
from sr_distill.evaluate import METRICS, make_metric
from sr_distill.evaluate.measures import ImagePair, niqe, psnr_rgb, psnr_y, ssim_rgb, ssim_y

from ..conftest import natural_image

# At scale 3: label, whether higher is better, decimals, sentence. A new metric gets a row.
TEXTS = {
    "psnr_y": ("psnr_y_b3", True, 3, "PSNR in dB on Y of BT.601 (16-235), not rounded, a border of 3 cut off."),
    "psnr_rgb": ("psnr_rgb_b3", True, 3, "PSNR in dB on RGB, a border of 3 cut off."),
    "ssim_y": (
        "ssim_y_b3",
        True,
        4,
        "SSIM on Y of BT.601 (16-235), not rounded, Gaussian window 11x11, sigma 1.5, no padding, a border of 3 cut off.",
    ),
    "ssim_rgb": (
        "ssim_rgb_b3",
        True,
        4,
        "SSIM on RGB, Gaussian window 11x11, sigma 1.5, no padding, a border of 3 cut off.",
    ),
    "lpips_alex": ("lpips_alex", False, 4, "LPIPS v0.1, backbone alex, on the whole RGB image."),
    "lpips_squeeze": ("lpips_squeeze", False, 4, "LPIPS v0.1, backbone squeeze, on the whole RGB image."),
    "lpips_vgg": ("lpips_vgg", False, 4, "LPIPS v0.1, backbone vgg, on the whole RGB image."),
    "vgg19_distance": (
        "vgg19_distance",
        False,
        4,
        "Distance of VGG19's maps (relu1_2, relu2_2, relu3_4), of unit length over the channels, on the whole RGB image.",
    ),
    "niqe": ("niqe_b3", False, 3, "NIQE of the image alone (BasicSR's), on Y, a border of 3 cut off."),
}


def _flat(value, height=40, width=52):
    return torch.full((1, 3, height, width), value, dtype=torch.uint8)


@pytest.mark.parametrize("name", sorted(set(METRICS) - {"lpips"}))
def test_what_a_table_says_of_a_metric(name):
    metric = make_metric(name, 3)
    assert metric.metric.type == name
    assert name in TEXTS, f"TEXTS has no row for {name}"
    assert (metric.label, metric.higher_is_better, metric.digits, metric.text) == TEXTS[name]


def test_lpips_is_that_of_a_backbone_that_is_here(random_backbones, no_data):
    assert make_metric("lpips", 3).label == "lpips_alex"


def test_lpips_without_any_backbone_says_what_is_missing(no_data):
    with pytest.raises(UserError, match="pretrained weights of alexnet are missing"):
        make_metric("lpips", 3)


def test_psnr_of_flat_images():
    sr, hr = _flat(110), _flat(100)
    assert psnr_rgb(sr, hr, 0).item() == pytest.approx(20 * math.log10(255 / 10), abs=1e-9)
    # Y of gray g is 16 + 219 g / 255.
    assert psnr_y(sr, hr, 0).item() == pytest.approx(20 * math.log10(255 / (10 * 219 / 255)), abs=1e-4)


def test_ssim_of_flat_images():
    """Without variance only the means are left: (2 m n + c1) / (m^2 + n^2 + c1)."""
    c1 = (0.01 * 255) ** 2
    expected = (2 * 110 * 100 + c1) / (110**2 + 100**2 + c1)
    assert ssim_rgb(_flat(110), _flat(100), 0).item() == pytest.approx(expected, abs=1e-9)
    two = torch.cat([_flat(110), _flat(100)])
    assert ssim_rgb(two, two.flip(0).fill_(100), 0).tolist() == pytest.approx([expected, 1.0], abs=1e-9)


@pytest.mark.parametrize("metric", ["psnr_y", "psnr_rgb", "ssim_y", "ssim_rgb"])
def test_the_border_that_make_metric_cuts_is_the_scale(metric):
    hr = torch.randint(0, 256, (1, 3, 40, 52), dtype=torch.uint8)
    sr = (hr // 2).clone()
    inside, framed = (slice(None), slice(None), slice(3, -3), slice(3, -3)), sr.clone()
    framed[..., :3, :], framed[..., -3:, :], framed[..., :3], framed[..., -3:] = 255, 255, 255, 255
    function = {"psnr_y": psnr_y, "psnr_rgb": psnr_rgb, "ssim_y": ssim_y, "ssim_rgb": ssim_rgb}[metric]
    expected = function(sr[inside], hr[inside], 0)
    torch.testing.assert_close(make_metric(metric, 3).measure(ImagePair(framed, hr)), expected)
    assert not torch.isclose(function(framed, hr, 2), expected)


def test_luma_is_computed_once_for_each_border():
    pair = ImagePair(_flat(3), _flat(4))
    assert pair.luma(2)[0] is pair.luma(2)[0]
    assert pair.luma(2)[0].shape == (1, 36, 48)
    assert pair.luma(0)[0].shape == (1, 40, 52)


def test_smallest_images_that_can_be_compared():
    assert psnr_y(_flat(1, 7, 9), _flat(2, 7, 9), 3).isfinite()
    with pytest.raises(ValueError, match=re.escape("an image of 9x6 pixels has nothing inside a border of 3")):
        psnr_y(_flat(1, 6, 9), _flat(2, 6, 9), 3)
    assert ssim_y(_flat(1, 11, 13), _flat(2, 11, 13), 0).isfinite()
    expected = "SSIM needs at least 11x11 pixels inside the border, got 13x10"
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        ssim_y(_flat(1, 10, 13), _flat(2, 10, 13), 0)
    with pytest.raises(ValueError, match=re.escape("sizes differ: (1, 3, 7, 9) and (1, 3, 9, 7)")):
        psnr_rgb(_flat(1, 7, 9), _flat(1, 9, 7), 0)


def test_niqe_needs_two_patches_inside_the_border():
    noise = torch.randint(0, 256, (1, 3, 100, 196), dtype=torch.uint8)
    assert niqe(noise, 2).isfinite()
    assert niqe(noise, 2).dtype == torch.float64
    expected = "NIQE needs at least two patches of 96x96 pixels inside a border of 3, got 196x100"
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        niqe(noise, 3)
    with pytest.raises(ValueError, match="got 143x143"):  # the area of two, but not two
        niqe(noise[..., :1].expand(1, 3, 100, 143).repeat(1, 1, 2, 1)[..., :143, :], 0)


def test_lpips_needs_32_pixels(random_backbones):
    measure = make_metric("lpips_alex", 3).measure
    assert measure(ImagePair(_flat(1, 32, 40), _flat(2, 32, 40))).isfinite()
    with pytest.raises(ValueError, match=r"^LPIPS needs at least 32x32 pixels, got 40x31$"):
        measure(ImagePair(_flat(1, 31, 40), _flat(2, 31, 40)))


def test_vgg19_distance_is_lpips_recipe_on_vgg19(random_backbones):
    from sr_distill.evaluate.measures import vgg19_distance
    from sr_distill.features import imagenet_normalised, vgg19_features
    from sr_distill.losses import normalised_difference

    sr, hr = (torch.from_numpy(natural_image(24, 32, seed)).permute(2, 0, 1)[None] for seed in (0, 1))
    expected = []
    for last in (3, 8, 17):  # relu1_2, relu2_2, relu3_4 of torchvision's vgg19
        maps = [vgg19_features()[: last + 1](imagenet_normalised(image.float() / 255)) for image in (sr, hr)]
        expected.append(normalised_difference(*maps))
    torch.testing.assert_close(vgg19_distance(sr, hr), torch.stack(expected).mean()[None].double())
    assert vgg19_distance(sr, sr).item() == 0


def test_ssim_is_the_same_without_opencv(monkeypatch):
    """Which cannot be imported on systems without a desktop's libraries."""
    from sr_distill.evaluate import measures

    first, second = (torch.from_numpy(natural_image(40, 50, seed)).permute(2, 0, 1)[None] for seed in (0, 1))
    with_it = measures.ssim_rgb(first, second, 4)
    monkeypatch.setattr(measures, "_opencv", lambda: None)
    torch.testing.assert_close(measures.ssim_rgb(first, second, 4), with_it, rtol=1e-9, atol=1e-9)
