"""What networks are given before int8: nothing changes in floats, the maps that may be scaled are, others are not, and means are kept."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sr_distill.data import embedded
from sr_distill.export import Signature
from sr_distill.export.photos import calibration_files, inputs
from sr_distill.models import STUDENTS, build_model, for_int8
from sr_distill.models.base import ModelSpec, SRModel
from sr_distill.models.blocks import collapse
from sr_distill.models.for_int8 import correct_biases, equalise
from sr_distill.models.quantised import calibrate, quantised, with_rounding
from sr_distill.zoo import open_model

from ..conftest import small


def _photos(scale):
    return inputs(calibration_files(None)[:4], Signature("rgb", scale, (32, 24)))


def _plain(name, scale, **tree):
    model = build_model(small(name, **tree), scale).eval()
    return SRModel(collapse(model.net), model.spec)


def _state(module):
    return {key: value.clone() for key, value in module.state_dict().items()}


def _changed(module, before):
    return {key for key, value in module.state_dict().items() if not torch.equal(before[key], value)}


def _uneven(net):
    """Channels of very different sizes, as trainings make them."""
    with torch.no_grad():
        for conv in net.modules():
            if isinstance(conv, nn.Conv2d) and conv.groups == 1:
                conv.weight.mul_(torch.logspace(-0.5, 0.5, conv.out_channels)[:, None, None, None])
    return net


@pytest.mark.parametrize(
    ("name", "scale"), [(name, scale) for name, entry in STUDENTS.items() for scale in entry.scales]
)
def test_every_student_stays_what_it_is_in_floats(name, scale):
    model = _plain(name, scale)
    before, photos = _state(model), _photos(scale)
    with torch.no_grad():
        wanted = model(photos[0])
        equalise(model, photos)
        torch.testing.assert_close(model(photos[0]), wanted, atol=1e-5, rtol=0)
    assert sum(key.endswith("weight") for key in _changed(model, before)) > 1


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.PReLU(8), nn.LeakyReLU(0.1)], ids=str)
def test_factors_are_square_roots_of_the_largest_values(activation):
    first, second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 3, 3)
    model = SRModel(nn.Sequential(first, activation, second), ModelSpec("net", 1))
    photos, before = list(torch.rand(3, 1, 3, 20, 16)), _state(model.net)
    with torch.no_grad():
        into = torch.cat([first(photo) for photo in photos])
        maps = (
            [activation(into)] if isinstance(activation, nn.ReLU) else [into, activation(into)]
        )  # a ReLU is of its convolution
        largest = torch.stack([each.abs().amax((0, 2, 3)) for each in maps]).amax(0)
    equalise(model, photos)
    factor = largest.clamp_min(0.01 * largest.max()).sqrt()
    factor = factor / factor.prod() ** (1 / 8)
    torch.testing.assert_close(first.weight, before["0.weight"] / factor.view(-1, 1, 1, 1))
    torch.testing.assert_close(first.bias, before["0.bias"] / factor)
    torch.testing.assert_close(second.weight, before["2.weight"] * factor.view(1, -1, 1, 1))
    torch.testing.assert_close(second.bias, before["2.bias"])


class _Net(nn.Module):
    """Two maps of a sum, one that SiLU reads, a kernel that is used twice, and groups."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.twice, self.last = (nn.Conv2d(n, m, 3, padding=1) for n, m in
                                                         ((3, 6), (6, 6), (6, 6), (6, 6), (6, 3)))  # fmt: skip
        self.grouped = nn.Conv2d(6, 6, 3, padding=1, groups=2)

    def forward(self, x):
        a = self.a(x).relu()
        summed = self.b(a).relu() + a
        smooth = nn.functional.silu(self.c(summed))
        again = self.twice(self.twice(smooth).relu()).relu()
        return self.last(self.grouped(again))


def test_maps_of_a_sum_are_scaled_alike_and_others_stay():
    model, photos = SRModel(_uneven(_Net()), ModelSpec("net", 1)), list(torch.rand(2, 1, 3, 20, 16))
    before = _state(model.net)
    with torch.no_grad():
        wanted = model(photos[1])
    equalise(model, photos)
    after = model.net.state_dict()
    assert {key.split(".")[0] for key in _changed(model.net, before)} == {"a", "b", "c"}
    factor = (before["a.bias"] / after["a.bias"]).view(-1, 1, 1, 1)
    torch.testing.assert_close(after["b.weight"], before["b.weight"] / factor * factor.view(1, -1, 1, 1))
    torch.testing.assert_close(after["c.weight"], before["c.weight"] * factor.view(1, -1, 1, 1))
    torch.testing.assert_close(model(photos[1]), wanted)


def test_means_behind_rounded_convolutions_are_those_in_floats():
    """Of each channel of the last map, where all the errors before it add up."""
    model, photos = _plain("mobile_sr", 2, num_block=6), _photos(2)
    means = {}
    for name in ("floats", "rounded", "corrected"):
        if name == "corrected":
            correct_biases(model, photos)
        each = model if name == "floats" else with_rounding(model, 1.0)
        if name != "floats":
            calibrate(each, photos)
        handle = each.net.tail.register_forward_hook(
            lambda module, args, out, name=name: means.update({name: out.mean((0, 2, 3))})
        )
        with torch.no_grad():
            each.eval()(torch.cat(photos))
        handle.remove()
    errors = [(means[name] - means["floats"]).abs().mean() for name in ("rounded", "corrected")]
    assert errors[1] < 0.3 * errors[0]


@pytest.mark.parametrize("name", ["mobile_sr_tiny_x4", "mobile_sr_large_x4", "mobile_sr_tiny_x2"])
def test_half_of_what_8_bits_lose_is_kept(name):
    """Shipped students, rounded map for map as their files in ONNX Runtime are, on photographs that play no part in it."""
    model = open_model(name).eval()
    scale = model.spec.scale
    photos, others = (inputs(files, Signature("rgb", scale, None))
                      for files in (calibration_files(None), embedded.held_out_photos()))  # fmt: skip
    errors = []
    for each in (model, for_int8(model, photos)):
        rounding = quantised(each, 0.01)
        calibrate(rounding, photos)
        with torch.no_grad():
            errors.append(sum((rounding.eval()(photo) - model(photo)).square().mean() for photo in others))
    assert errors[1] < 0.7 * errors[0]


def test_what_was_trained_for_int8_stays_as_it_is():
    model = quantised(build_model(small("mobile_sr"), 2), 0.1)
    assert for_int8(model, _photos(2)) is model


@pytest.mark.parametrize("name", ["mobile_sr", "rlfn", "carn_m", "bsrn"])
def test_the_model_itself_stays_as_it_was(name):
    model = build_model(small(name), 2).eval()
    before = _state(model)
    prepared = for_int8(model, _photos(2))
    assert not _changed(model, before)
    assert any(
        not torch.equal(a, b) for a, b in zip(model.collapsed().state_dict().values(), prepared.state_dict().values())
    )
