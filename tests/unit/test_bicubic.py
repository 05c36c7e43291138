"""MATLAB's bicubic: what can be worked out by hand."""

from __future__ import annotations

import pytest
import torch

from sr_distill.data.bicubic import downscale_to_uint8, imresize, mirrored
from sr_distill.models.basicsr import import_basicsr


@pytest.mark.parametrize("turned", [False, True])
def test_what_overshoots_an_edge_is_clipped_and_does_not_wrap(turned):
    """Beside an edge the kernel's negative lobe gives less than 0 and more than 255."""
    hr = torch.zeros(16, 16, dtype=torch.uint8)
    hr[:, 8:] = 255
    exact = imresize(hr.double(), 0.5)[0]
    assert exact.min() < -2
    assert exact.max() > 257
    lr = downscale_to_uint8(hr.T if turned else hr, 2)
    expected = exact.add(0.5).floor().clamp(0, 255).to(torch.uint8).expand(8, 8)
    assert torch.equal(lr, expected.T if turned else expected)


def test_rows_are_rounded_before_columns():
    """Rounded once at the end, the faint rim of a point of light is another."""
    hr = torch.zeros(12, 12, dtype=torch.uint8)
    hr[6, 6] = 40
    at_the_end = imresize(hr.double(), 0.5).add(0.5).floor().clamp(0, 255).to(torch.uint8)
    assert not torch.equal(at_the_end, downscale_to_uint8(hr, 2))


def test_keys_kernel_at_twice_the_size():
    """Enlarging by 2 puts pixels at 1/4 and 3/4 between two: the kernel's weights at 0.25, 0.75, 1.25 and 1.75."""
    point = torch.zeros(1, 11, dtype=torch.float64)
    point[0, 5] = 1
    row = imresize(point.expand(11, 11), 2.0)[10]
    weights = [-0.0234375, -0.0703125, 0.2265625, 0.8671875, 0.8671875, 0.2265625, -0.0703125, -0.0234375]
    assert row[7:15].tolist() == pytest.approx(weights, abs=1e-12)
    assert row[:7].abs().max() == row[15:].abs().max() == 0


def test_mirrored_repeats_the_border():
    index = torch.arange(-7, 9)
    assert mirrored(index, 3).tolist() == [0, 0, 1, 2, 2, 1, 0, 0, 1, 2, 2, 1, 0, 0, 1, 2]


@pytest.mark.parametrize("size", [(48, 36), (31, 50), (12, 97)])
@pytest.mark.parametrize("scale", [1 / 2, 1 / 3, 1 / 4, 2, 3, 4])
def test_imresize_equals_basicsr(size, scale):
    image = torch.rand(3, *size)
    expected = import_basicsr("utils.matlab_functions").imresize(image, scale)
    got = imresize(image, scale)
    assert got.shape == expected.shape
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=0)  # BasicSR works in float32; 1 level is 4e-3


def test_imresize_of_a_batch_and_its_gradient():
    image = torch.rand(2, 3, 8, 12, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(imresize(image, 2)[1], imresize(image[1], 2))
    assert torch.autograd.gradcheck(lambda x: imresize(x, 0.5), image)


def test_imresize_keeps_a_constant_image_and_very_small_ones():
    torch.testing.assert_close(imresize(torch.full((1, 9, 7), 0.3), 1 / 4), torch.full((1, 3, 2), 0.3))
    assert imresize(torch.rand(1, 1, 1), 4).shape == (1, 4, 4)


def test_downscale_rounds_and_clips():
    hr = torch.zeros(3, 16, 16, dtype=torch.uint8)
    hr[:, :, 8:] = 255
    lr = downscale_to_uint8(hr, 2)
    assert lr.dtype == torch.uint8
    assert lr.shape == (3, 8, 8)
    assert lr.min() == 0  # the kernel overshoots on both sides of an edge
    assert lr.max() == 255
