"""Luma and chroma: numbers against BasicSR, scikit-image and kornia."""

from __future__ import annotations

import kornia
import numpy as np
import pytest
import skimage.color
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sr_distill.data import imresize, luma, rgb_to_ycbcr, ycbcr_to_rgb
from sr_distill.data.color import with_luma_of
from sr_distill.models.basicsr import import_basicsr


def test_ycbcr_equals_basicsr_and_scikit_image():
    image = np.random.default_rng(0).random((5, 7, 3)).astype(np.float32)
    expected = import_basicsr("utils.color_util").rgb2ycbcr(image)
    got = rgb_to_ycbcr(torch.from_numpy(image).permute(2, 0, 1)).permute(1, 2, 0)
    np.testing.assert_allclose(got, expected, atol=1e-6)
    np.testing.assert_allclose(got * 255, skimage.color.rgb2ycbcr(image), atol=1e-3)


def test_ycbcr_back_is_exact_also_out_of_range():
    image = torch.rand(2, 3, 6, 5, dtype=torch.float64) * 3 - 1
    torch.testing.assert_close(ycbcr_to_rgb(rgb_to_ycbcr(image)), image, atol=1e-12, rtol=0)
    torch.testing.assert_close(luma(image), rgb_to_ycbcr(image)[:, :1])


def test_full_range_luma_of_kornia_is_another_thing():
    """kornia and PIL use full-range luma: 1.32 dB apart from the papers' 16-235; ours must not be that."""
    white = torch.ones(1, 3, 1, 1)
    assert luma(white).item() == pytest.approx(235 / 255)
    assert kornia.color.rgb_to_ycbcr(white)[:, 0].item() == pytest.approx(1.0, abs=1e-3)


def test_with_luma_of_keeps_chroma():
    image, source = torch.rand(2, 3, 4, 5, dtype=torch.float64), torch.rand(2, 3, 4, 5, dtype=torch.float64)
    mixed = rgb_to_ycbcr(with_luma_of(image, source))
    torch.testing.assert_close(mixed[:, :1], luma(source), atol=1e-6, rtol=0)
    torch.testing.assert_close(mixed[:, 1:], rgb_to_ycbcr(image)[:, 1:], atol=1e-6, rtol=0)


class _Calls(TorchDispatchMode):
    """Names of the operations that PyTorch runs while this lasts."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("convert", [rgb_to_ycbcr, ycbcr_to_rgb, luma, lambda image: imresize(image, 0.25)])
def test_constants_are_made_and_moved_once(convert, dtype):
    making = {"_to_copy", "lift_fresh", "arange", "linalg_inv_ex", "scalar_tensor"}
    image = torch.rand(2, 3, 37, 23, dtype=dtype)
    first = convert(image)
    with _Calls() as calls:
        assert torch.equal(convert(image), first)
    assert calls.names
    assert not calls.names & making


def test_constants_that_inference_made_serve_training():
    with torch.inference_mode():
        imresize(torch.rand(1, 3, 41, 43), 2)
        rgb_to_ycbcr(torch.rand(1, 3, 2, 2, dtype=torch.float16))
    image = torch.rand(1, 3, 41, 43, requires_grad=True)
    imresize(image, 2).sum().backward()
    half = torch.rand(1, 3, 2, 2, dtype=torch.float16, requires_grad=True)
    rgb_to_ycbcr(half).sum().backward()
    assert image.grad.isfinite().all()
    assert half.grad.isfinite().all()


@pytest.mark.parametrize("convert", [rgb_to_ycbcr, ycbcr_to_rgb, luma, lambda image: imresize(image, 2)])
def test_colours_and_bicubic_are_not_autocast(convert):
    image = torch.rand(1, 3, 5, 6)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = convert(image)
    assert torch.equal(mixed, convert(image))
