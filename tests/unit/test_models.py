"""Networks: every entry of the registries, published sizes, reference implementations, use as a teacher."""

from __future__ import annotations

import sys
from typing import Literal

import pytest
import torch
from torch import nn

from sr_distill.data import imresize, rgb_to_ycbcr
from sr_distill.errors import UserError
from sr_distill.models import ARCHITECTURES, STUDENTS, Architecture, Teacher, bicubic_model, build_model
from sr_distill.models.base import ModelSpec, SRModel
from sr_distill.models.basicsr import import_basicsr
from sr_distill.models.blocks import NearestAnchor, collapse
from sr_distill.registry import register_student, register_teacher

from ..conftest import architecture, in_colors, small

BUILDABLE = [(name, scale) for name, entry in ARCHITECTURES.items() for scale in entry.scales]


@pytest.mark.parametrize(("name", "scale"), BUILDABLE)
def test_any_size_in_scale_times_that_out(name, scale):
    model = build_model(small(name), scale).eval()
    with torch.no_grad():
        for height, width in ((1, 1), (7, 18), (17, 16)):
            assert model(torch.rand(1, 3, height, width)).shape == (1, 3, height * scale, width * scale)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_weight_gets_a_finite_gradient(name):
    model = build_model(small(name), 4).train()
    model(torch.rand(2, 3, 16, 16)).square().mean().backward()
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_batch_is_as_good_as_single_images(name):
    model = build_model(small(name), 2).eval()
    images = torch.rand(2, 3, 16, 18)
    with torch.no_grad():
        torch.testing.assert_close(
            model(images), torch.cat([model(image[None]) for image in images]), atol=1e-5, rtol=1e-4
        )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_bf16_is_close_and_stays_float_outside(name):
    model = build_model(small(name), 2).eval()
    image = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        exact = model(image)
        model.autocast = torch.bfloat16
        rough = model(image)
    assert rough.dtype == torch.float32
    assert (rough - exact).abs().mean() < 0.02 * exact.abs().mean() + 0.01


@pytest.mark.parametrize("color", ["rgb", "y"])
def test_a_callers_autocast_reaches_the_network_and_not_the_colours(color):
    model, image, dtypes = build_model(small("mobile_sr", color=color), 2).eval(), torch.rand(1, 3, 12, 10), []
    for module in (model.net.head[0], model.net.tail):
        module.register_forward_hook(lambda module, args, out: dtypes.append(out.dtype))
    with torch.no_grad():
        exact = model(image)
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(image)
        model.autocast = torch.bfloat16
        own = model(image)
    assert dtypes == [torch.float32] * 2 + [torch.bfloat16] * 4
    assert rough.dtype == torch.float32
    assert torch.equal(rough, own)
    assert not torch.equal(rough, exact)
    if color == "y":
        chroma = imresize(rgb_to_ycbcr(image)[:, 1:], 2)
        torch.testing.assert_close(rgb_to_ycbcr(rough)[:, 1:], chroma, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "tree"), in_colors(STUDENTS, "y"))
def test_a_luma_network_makes_of_gray_what_it_makes_of_equal_channels(name, tree):
    model, gray = build_model(small(name, **tree), 2).eval(), torch.rand(2, 1, 12, 10)
    with torch.no_grad():
        expected = model(gray.expand(-1, 3, -1, -1))
        torch.testing.assert_close(model(gray).expand(-1, 3, -1, -1), expected, atol=1e-5, rtol=1e-5)


def test_the_output_has_the_dtype_of_the_input():
    model = build_model(small("mobile_sr", color="y"), 2).eval().to(torch.bfloat16)
    assert model(torch.rand(1, 3, 12, 10, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert model.double()(torch.rand(1, 3, 12, 10, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize(("name", "tree"), in_colors(STUDENTS, "y"))
def test_a_luma_student_leaves_chroma_to_bicubic(name, tree):
    model = build_model(small(name, **tree), 2).eval()
    lr = torch.rand(1, 3, 12, 10)
    with torch.no_grad():
        sr = rgb_to_ycbcr(model(lr))
        torch.testing.assert_close(sr[:, 1:], imresize(rgb_to_ycbcr(lr)[:, 1:], 2), atol=1e-5, rtol=0)
        torch.testing.assert_close(sr[:, :1], model.net(rgb_to_ycbcr(lr)[:, :1]), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("tree", "scale", "parameters"),
    [
        # EDSR-baseline, HiT-SRF, IMDN, PAN: parameters of the papers' tables; RLFN: of the authors' repository; RFDN, EFDN, BSRN: of the
        # authors' checkpoints.
        ({"type": "edsr"}, 2, 1_369_859),
        ({"type": "edsr"}, 3, 1_554_499),
        ({"type": "edsr"}, 4, 1_517_571),
        ({"type": "rcan", "num_group": 10, "num_block": 20}, 4, 15_592_355),
        ({"type": "rrdbnet"}, 4, 16_697_987),
        ({"type": "hit_srf"}, 4, 866_420),
        ({"type": "imdn"}, 2, 694_404),
        ({"type": "imdn"}, 4, 715_176),
        ({"type": "pan"}, 2, 261_403),
        ({"type": "pan"}, 4, 272_419),
        ({"type": "rlfn"}, 2, 526_856),
        ({"type": "rlfn"}, 4, 543_740),
        ({"type": "rlfn", "num_feat": 46, "num_mid": 48, "num_block": 4}, 4, 317_218),
        ({"type": "rfdn"}, 4, 433_448),
        ({"type": "efdn"}, 4, 276_192),
        ({"type": "bsrn"}, 4, 156_288),
        # CARN-M: 414,811 in the authors' checkpoint, of which 194,880 are the upsamplers of the three scales.
        ({"type": "carn_m"}, 2, 414_811 - 194_880 + 37_120),
        ({"type": "carn_m"}, 3, 414_811 - 194_880 + 83_520),
        ({"type": "carn_m"}, 4, 414_811 - 194_880 + 74_240),
        # ECBSR in its deployed form, luma: 2.75 K and 11.8 K.
        ({"type": "ecbsr", "num_block": 4, "num_feat": 8}, 2, 2_748),
        ({"type": "ecbsr", "num_block": 4, "num_feat": 16}, 4, 11_840),
        # FSRCNN(56, 12, 4): 12,464 weights without biases and slopes (Dong et al. 2016, table 3), and 345 of these.
        ({"type": "fsrcnn"}, 3, 12_464 + 56 + 12 + 4 * 12 + 56 + 1 + 56 + 12 + 4 * 12 + 56),
        ({"type": "compact"}, 4, 621_424),
    ],
)
def test_published_numbers_of_parameters(tree, scale, parameters):
    assert build_model(architecture(**tree), scale).num_parameters == parameters


def test_without_basicsr_its_networks_say_so(monkeypatch):
    """pip alone installs none on Python 3.13 and newer."""
    monkeypatch.setitem(sys.modules, "basicsr.archs.rcan_arch", None)
    with pytest.raises(UserError, match=r"pip alone cannot build it: bash scripts/quickstart.sh") as error:
        build_model(architecture(type="rcan"), 4)
    theirs = [name for name, entry in ARCHITECTURES.items() if entry.__module__ == "sr_distill.models.basicsr"]
    assert len(theirs) == 5
    assert not [name for name in [*theirs, "niqe"] if name not in str(error.value)]


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_edsr_equals_basicsr_in_value_and_gradient(scale):
    ours = build_model(architecture(type="edsr", num_feat=8, num_block=2, res_scale=0.5), scale).net
    theirs = import_basicsr("archs.edsr_arch").EDSR(3, 3, 8, 2, scale, 0.5)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    image = torch.rand(2, 3, 9, 7)
    first, second = ours(image), theirs(image)
    torch.testing.assert_close(first, second)
    gradients = (
        torch.autograd.grad(out.square().sum(), list(net.parameters()))
        for out, net in ((first, ours), (second, theirs))
    )
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_ecbsr_equals_basicsr_in_value_and_gradient():
    """BasicSR runs the five branches one after the other while training; ours collapses them first."""
    options = architecture(type="ecbsr", num_feat=6, num_block=2, color="rgb")
    ours = build_model(options, 2).net.train()
    theirs = import_basicsr("archs.ecbsr_arch").ECBSR(3, 3, 2, 6, False, "prelu", 2).train()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    image = torch.rand(2, 3, 9, 7)
    first, second = ours(image), theirs(image)
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-4)
    first.square().sum().backward()
    second.square().sum().backward()
    reference = dict(theirs.named_parameters())
    for name, weight in ours.named_parameters():
        torch.testing.assert_close(weight.grad, reference[name].grad, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("size", [(8, 8), (13, 10)])
@pytest.mark.parametrize("block", [0, 1, 2])
def test_hit_srf_correlates_as_the_paper_writes(block, size):
    """In windows of 2, 4 and 8 with 4 x 4 cells: every correlation map written out, head by head."""
    options = architecture(type="hit_srf", embed_dim=32, depths=[3], num_heads=[2], windows=[2, 4, 8], base_window=4)
    layer = build_model(options, 2).net.layers[0].residual_group.blocks[block].correlation.eval()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    (height, width), side = size, (2, 4, 8)[block]
    cells, ratio = min(side, 4), max(side // 4, 1)
    image = torch.rand(1, 32, height, width)
    padded = nn.functional.pad(image, (0, -width % side, 0, -height % side), mode="reflect")
    places = torch.cartesian_prod(torch.arange(side), torch.arange(side))

    def gather(values):  # the last dimension but one runs over places: to (..., cells^2, ratio^2, last)
        values = values.unflatten(-2, (cells, ratio, cells, ratio)).transpose(-4, -3)
        return values.flatten(-5, -4).flatten(-3, -2)

    with torch.no_grad():
        pos = layer.pos
        biases = pos.pos3(pos.pos2(pos.pos1(pos.pos_proj((places[:, None] - places[None]).float()))))
        biases = gather(biases).mean(-2)
        maps = layer.qv.conv(padded) * layer.qv.linear(padded)
        out = torch.zeros_like(padded)
        for top in range(0, padded.shape[2], side):
            for left in range(0, padded.shape[3], side):
                window = (0, slice(None), slice(top, top + side), slice(left, left + side))
                query, value = maps[window].flatten(1).t().chunk(2, dim=1)
                heads = []
                for head in range(2):
                    part = slice(8 * head, 8 * head + 8)
                    short = layer.spatial_linear(gather(value[:, part]).transpose(-1, -2)).squeeze(-1)
                    heads.append((query[:, part] @ short.t() / 8 + biases[..., head]) @ short)
                channel = (query.t() @ value / side**2 @ value.t()).t()
                out[window] = torch.cat([*heads, channel], dim=1).t().unflatten(1, (side, side))
        expected = layer.proj(out[..., :height, :width].flatten(2).transpose(1, 2))
        got = layer(image.flatten(2).transpose(1, 2), size)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_collapse_changes_the_form_and_not_the_result():
    model = build_model(small("ecbsr", color="rgb"), 2).eval()
    flat = collapse(model.net)
    kinds = {type(layer) for layer in flat.modules() if not list(layer.children())}
    assert kinds == {nn.Conv2d, nn.PReLU, nn.Identity, nn.PixelShuffle, NearestAnchor}
    image = torch.rand(1, 3, 9, 7)
    with torch.no_grad():
        torch.testing.assert_close(flat(image), model.net(image), atol=1e-5, rtol=1e-5)
    assert (
        model.num_parameters
        == sum(p.numel() for p in flat.parameters())
        < sum(p.numel() for p in model.net.parameters())
    )


def test_mobile_sr_starts_near_nearest_neighbour_and_is_clipped_in_use():
    model = build_model(architecture(type="mobile_sr"), 4)
    image = torch.rand(1, 3, 16, 16)
    nearest = nn.functional.interpolate(image, scale_factor=4, mode="nearest")
    with torch.no_grad():
        assert (model.train()(image) - nearest).abs().mean() < 0.25
        model.net.tail.bias.fill_(2.0)
        assert model.train()(image).max() > 1
        assert model.eval()(image).max() == 1


def test_bicubic_is_a_model_like_others():
    image = torch.rand(1, 3, 5, 6)
    torch.testing.assert_close(bicubic_model(3)(image), imresize(image, 3))


def test_small_and_uneven_inputs_are_mirrored_for_networks_that_need_more():
    class Sizes(nn.Module):
        def forward(self, x):
            self.seen = x
            return x

    model = SRModel(Sizes(), ModelSpec(name="t", scale=1, size_multiple=4, min_size=8, value_range=255.0))
    image = torch.arange(15.0).view(1, 1, 3, 5) / 255
    torch.testing.assert_close(model(image), image)
    assert model.net.seen.shape == (1, 1, 8, 8)
    assert model.net.seen[0, 0, :, 0].tolist() == pytest.approx([0, 5, 10, 10, 5, 0, 0, 5], abs=1e-4)


def test_a_teacher_stays_frozen_and_in_eval():
    teacher = Teacher(build_model(small("rlfn"), 2)).train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    sr = teacher(torch.rand(1, 3, 16, 16, requires_grad=True))
    assert not sr.requires_grad
    assert not sr.is_inference()
    assert 0 <= sr.min() <= sr.max() <= 1


def test_a_self_ensembled_teacher_averages_eight_views_and_commutes_with_turns():
    model = build_model(small("rlfn"), 2)
    plain, ensemble = Teacher(model), Teacher(model, self_ensemble=True)
    lr = torch.rand(1, 3, 16, 20)
    views = []
    for mirror in (False, True):
        for turns in range(4):
            view = torch.rot90(lr.flip(-1) if mirror else lr, turns, (2, 3))
            back = torch.rot90(model(view).detach(), -turns, (2, 3))
            views.append(back.flip(-1) if mirror else back)
    torch.testing.assert_close(ensemble(lr), torch.stack(views).mean(0).clamp(0, 1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ensemble(lr.flip(-2)), ensemble(lr).flip(-2), atol=1e-5, rtol=1e-5)
    assert plain.key != ensemble.key


def test_a_network_that_cannot_be_built_for_the_scale():
    with pytest.raises(UserError, match=r"rrdbnet cannot be built for scale 3; allowed: 2, 4"):
        build_model(small("rrdbnet"), 3)


@pytest.mark.parametrize(("register", "name"), [(register_student, "edsr"), (register_teacher, "mobile_sr")])
def test_a_name_is_a_students_or_a_teachers(register, name):
    class Mine(Architecture):
        """Another network of that name."""

        type: Literal[name]

    with pytest.raises(TypeError, match=f"there is a network '{name}' already"):
        register(Mine)
