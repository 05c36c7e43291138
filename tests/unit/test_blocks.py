"""Convolutions that are over-parameterised in training: what they equal, and how they come and go."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sr_distill.errors import UserError
from sr_distill.models import STUDENTS, build_model, collapse, load_model, save_model
from sr_distill.models.basicsr import import_basicsr
from sr_distill.models.blocks import convolution
from sr_distill.models.students.mobile_sr import MobileSROptions
from sr_distill.options import RunOptions, validate
from sr_distill.train import build_run

from ..conftest import architecture, small

KINDS = [
    (kind, size, identity)
    for kind, size, identity in itertools.product(("none", "expand", "edge"), (3, 5), (False, True))
]


def _branches(conv, x, kind, identity):
    """The same map by branches that run one after the other, as the papers draw them."""
    size = conv.shape[-1]
    if kind == "none":
        y = F.conv2d(x, conv.weight, conv.bias, padding=size // 2)
    elif kind == "expand":
        y = F.conv2d(F.conv2d(x, conv.expand, padding=size // 2), conv.project[:, :, None, None], conv.bias)
    else:
        theirs = import_basicsr("archs.ecbsr_arch")
        y = F.conv2d(x, conv.conv3x3.weight, conv.conv3x3.bias, padding=size // 2)
        out_channels, in_channels = conv.shape[:2]
        for name, kind_of in (("conv1x1_3x3", "conv1x1-conv3x3"), ("conv1x1_sbx", "conv1x1-sobelx"),
                              ("conv1x1_sby", "conv1x1-sobely"), ("conv1x1_lpl", "conv1x1-laplacian")):  # fmt: skip
            branch = theirs.SeqConv3x3(kind_of, in_channels, out_channels, 2)
            branch.load_state_dict(getattr(conv, name).state_dict(), strict=True)
            y = y + branch(x)
    return y + x if identity else y


@pytest.mark.parametrize(("kind", "size", "identity"), KINDS)
def test_the_merged_kernel_is_what_the_branches_are(kind, size, identity):
    conv = convolution(6, 6, size, kind, identity, hidden=10)
    nn.init.normal_(conv.bias if kind != "edge" else conv.conv3x3.bias)
    x = torch.rand(2, 6, 9, 8, requires_grad=True)
    merged, branches = conv(x), _branches(conv, x, kind, identity)
    torch.testing.assert_close(merged, branches, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(conv.collapse()(x), merged, atol=1e-5, rtol=1e-5)
    if kind == "edge":  # the branches' weights are copies: test_models.py compares gradients
        return
    weights = list(conv.parameters())
    first = torch.autograd.grad(merged.square().sum(), [x, *weights])
    for got, expected in zip(first, torch.autograd.grad(branches.square().sum(), [x, *weights])):
        torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(("kind", "size", "identity"), KINDS)
def test_it_becomes_equal_to_any_convolution(kind, size, identity):
    conv, plain = convolution(6, 6, size, kind, identity, hidden=10), nn.Conv2d(6, 6, size, padding=size // 2)
    conv.take(plain.weight, plain.bias)
    x = torch.rand(1, 6, 9, 8)
    torch.testing.assert_close(conv(x), plain(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("in_channels", [1, 8])
@pytest.mark.parametrize("kind", ["none", "expand", "edge"])
def test_the_merged_kernel_has_the_layout_of_the_weights(kind, in_channels, layout):
    """By its strides, as those of a plain convolution: they decide the layout of the maps where one channel leaves it open."""
    conv = convolution(in_channels, 8, 3, kind, True, 16).to(memory_format=layout)
    plain = nn.Conv2d(in_channels, 8, 3).to(memory_format=layout)
    assert conv.collapsed()[0].stride() == plain.weight.stride()


@pytest.mark.parametrize("identity", [False, True])
@pytest.mark.parametrize("reparam", ["none", "expand", "edge"])
def test_the_signal_survives_the_depth(reparam, identity):
    net = build_model(architecture(type="mobile_sr", num_block=12, reparam=reparam, identity=identity), 2).net
    head = net.head(torch.rand(2, 3, 24, 24))
    assert 0.2 < net.body(head).std() / head.std() < 10
    if not identity:
        for conv, _ in net.body:
            assert conv.collapsed()[0].std().item() == pytest.approx((2 / (9 * 16)) ** 0.5, rel=1e-5)


def test_the_identity_needs_equal_channels():
    assert not convolution(3, 6, 3, "none", True, 4).identity


@pytest.mark.parametrize("color", ["y", "rgb"])
@pytest.mark.parametrize(("name", "most"), [("tiny", 30_000), ("base", 62_000), ("large", 165_000)])
def test_named_sizes_keep_within_their_limits(name, most, color):
    for scale in (2, 3, 4):
        count = build_model(architecture(type=f"mobile_sr_{name}", color=color), scale).num_parameters
        assert 0.7 * most < count <= most
        plain = build_model(architecture(type=f"mobile_sr_{name}", color=color).collapsed(), scale)
        assert sum(weight.numel() for weight in plain.parameters()) == count


def test_a_named_size_may_be_changed_in_part():
    options = architecture(type="mobile_sr_tiny", num_block=3, activation="prelu")
    assert (options.color, options.num_feat, options.num_block, options.activation) == ("y", 16, 3, "prelu")
    with pytest.raises(UserError, match="color"):
        architecture(type="mobile_sr_tiny", color="cmyk")


FAMILY = [
    {
        "reparam": reparam,
        "identity": identity,
        "activation": activation,
        "anchor": anchor,
        **({"hidden": 40} if reparam == "expand" else {}),
    }
    for reparam, identity, activation, anchor in (
        ("none", True, "relu", "nearest"),
        ("expand", True, "prelu", "learned"),
        ("expand", False, "silu", "nearest"),
        ("edge", True, "relu", "learned"),
    )
]


@pytest.mark.parametrize("tree", FAMILY)
def test_the_file_has_the_deployed_form(tree, tmp_path):
    model = build_model(small("mobile_sr", **tree), 3).eval()
    random = torch.get_rng_state()
    plain = model.collapsed()
    assert torch.equal(torch.get_rng_state(), random)
    assert plain.spec.architecture == small("mobile_sr", **tree | {"reparam": "none", "identity": False, "hidden": 128})
    save_model(plain, tmp_path / "m.safetensors")
    image = torch.rand(1, 3, 12, 9)
    with torch.no_grad():
        torch.testing.assert_close(load_model(tmp_path / "m.safetensors")(image), model(image), atol=1e-5, rtol=1e-5)
    kinds = {
        type(layer).__name__
        for layer in collapse(plain.net).modules()
        if next(layer.parameters(recurse=False), None) is not None
    }
    assert kinds <= {"Conv2d", "PReLU", "_LearnedAnchor"}
    assert plain.collapsed() is plain


@pytest.mark.parametrize("name", STUDENTS)
def test_collapsing_changes_no_output(name):
    model, image = build_model(small(name), 2).eval(), torch.rand(1, 3, 12, 9)
    with torch.no_grad():
        torch.testing.assert_close(model.collapsed()(image), model(image), atol=1e-5, rtol=1e-5)


def _run_from(path, scale, **tree):
    options = {
        "name": "t",
        "scale": scale,
        "student": small("mobile_sr", **tree).model_dump(),
        "init_from": str(path),
        "data": {"train": [{"hr": "embedded"}]},
        "losses": [{"type": "l1"}],
        "train": {"total_steps": 1},
    }
    return build_run(validate(RunOptions, options, "test"))


@pytest.mark.parametrize("tree", FAMILY)
def test_a_run_starts_from_the_deployed_form(tree, tmp_path):
    given = build_model(small("mobile_sr", **tree), 2)
    save_model(given.collapsed(), tmp_path / "m.safetensors")
    run = _run_from(tmp_path / "m.safetensors", 2, **tree)
    start = run.students["student"]
    assert start.spec == given.spec
    assert not run.not_taken
    assert list(_run_from(tmp_path / "m.safetensors", 4, **tree).not_taken)[-1] == "tail"
    image = torch.rand(1, 3, 12, 9)
    torch.testing.assert_close(start.eval()(image), given.eval()(image), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("anchor", ["nearest", "learned"])
def test_the_body_of_another_scale_is_taken_over(anchor):
    x2, x4 = (build_model(small("mobile_sr", anchor=anchor), scale) for scale in (2, 4))
    tail = x4.net.tail.collapsed()[0].clone()
    assert x4.start_from(x2.collapsed()) == (["anchor.weight"] if anchor == "learned" else []) + ["tail"]
    image = torch.rand(1, 3, 8, 8)
    for part in ("head", "body"):
        image_in = image if part == "head" else x2.net.head(image)
        torch.testing.assert_close(
            getattr(x4.net, part)(image_in), getattr(x2.net, part)(image_in), atol=1e-4, rtol=1e-4
        )
    assert torch.equal(x4.net.tail.collapsed()[0], tail)
    with pytest.raises(ValueError, match="another network"):
        x4.start_from(build_model(small("mobile_sr", activation="silu"), 2))
    with pytest.raises(ValueError, match="another network"):
        x4.start_from(build_model(small("fsrcnn"), 4))


def test_what_may_be_left_out_is_left_out():
    """The plain network of Du et al. 2021: convolutions, activations, and the input added to the output."""
    options = MobileSROptions(
        type="mobile_sr", num_feat=6, num_block=2, reparam="none", identity=False, long_skip=False, tail_kernel=3
    )
    net, image = build_model(options, 2).net, torch.rand(1, 3, 8, 8)
    layers = [net.head, *net.body]
    feature = image
    for conv, _ in layers:
        feature = F.relu(F.conv2d(feature, conv.weight, conv.bias, padding=1))
    feature = F.conv2d(feature, net.tail.weight, net.tail.bias, padding=1)
    expected = F.pixel_shuffle(feature, 2) + F.interpolate(image, scale_factor=2, mode="nearest")
    torch.testing.assert_close(net(image), expected)
    with_skip = build_model(options.model_copy(update={"long_skip": True}), 2).net
    with_skip.load_state_dict(net.state_dict())
    assert not torch.equal(with_skip(image), expected)
