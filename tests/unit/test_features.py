"""Taps, pairs and adapters."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sr_distill.contracts import Batch
from sr_distill.errors import UserError
from sr_distill.features import Adapter, FeaturePair, Need, TappedTeacher, TapPoint, Taps, choose_pairs, list_taps
from sr_distill.features.pairs import block_chain, chain_before_activations
from sr_distill.features.taps import as_map
from sr_distill.models import ARCHITECTURES, ModelSpec, SRModel, Teacher, build_model
from sr_distill.options import validate
from sr_distill.options.sections import FeatureOptions

from ..conftest import Objective, architecture, small, terms


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_listed_layer_can_be_tapped_and_gives_what_was_promised(name):
    model = build_model(small(name), 2).eval()
    points = list_taps(model)
    assert points
    lr = torch.rand(2, 3, 32, 32)
    maps = Taps(model, [point.path for point in points]).run(lr).features
    for point in points:
        height = round(32 * point.stride)
        assert maps[point.path].shape == (2, point.channels, height, height), point


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_tapping_changes_nothing(name):
    model = build_model(small(name), 2).eval()
    lr = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        expected = model(lr)
        sr = Taps(model, [point.path for point in list_taps(model)][:4]).run(lr).sr
        assert torch.equal(sr, expected)
        assert torch.equal(model(lr), expected)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_auto_finds_a_chain_of_blocks(name):
    model = build_model(small(name), 2)
    chain = block_chain(list_taps(model), name)
    assert chain
    assert all(tap.stride == 1 for tap in chain)
    pairs = choose_pairs(model, model, FeatureOptions(count=2))
    assert 1 <= len(pairs) <= 2
    assert pairs[-1].student == chain[-1]


def test_auto_takes_the_blocks_of_well_known_networks():
    def paths(name, **tree):
        return [tap.path for tap in block_chain(list_taps(build_model(architecture(type=name, **tree), 4)), name)]

    assert paths("edsr", num_feat=8, num_block=4) == [f"body.{i}" for i in range(4)]
    assert paths("rlfn", num_feat=8) == [f"block_{i}" for i in range(1, 7)]
    assert paths("imdn", num_feat=16) == [f"IMDB{i}" for i in range(1, 7)]
    assert paths("carn_m", num_feat=8, groups=2) == ["b1", "b2", "b3"]
    assert paths("rfdn", num_feat=8) == [f"B{i}" for i in range(1, 5)]
    assert paths("efdn", num_feat=8) == [f"cells.{i}" for i in range(4)]
    assert paths("bsrn", num_feat=8) == [f"B{i}" for i in range(1, 6)]
    assert paths("rcan", num_feat=16, num_group=3, num_block=4) == [f"body.{i}" for i in range(3)]
    assert paths("mobile_sr", num_feat=8, num_block=3) == [f"body.{i}" for i in range(3)]
    assert paths("ecbsr", num_feat=8, num_block=3) == [f"backbone.{i}" for i in range(4)]
    assert paths("hit_srf", embed_dim=16, num_heads=[2] * 4, depths=[2] * 4) == [f"layers.{i}" for i in range(4)]
    assert paths("swinir", embed_dim=8, num_heads=[2] * 4, depths=[2] * 4) == [f"layers.{i}" for i in range(4)]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_layers_before_an_activation(name):
    """Of each network, the layers that are said to stand before an activation: what they put out goes into one, and is signed."""
    model = build_model(small(name), 2)
    points = [point for point in list_taps(model) if point.before_activation]
    maps = Taps(model, [point.path for point in points]).run(torch.rand(1, 3, 32, 32)).features if points else {}
    for point in points:
        path, value = point.path, maps[point.path]
        assert value.min() < 0 or point.stride < 1, path  # the few values of an attention may all be positive
        assert type(model.net.get_submodule(path)).__name__ not in ("ReLU", "PReLU", "LeakyReLU", "GELU"), path
    if [point for point in points if point.stride == 1]:
        assert chain_before_activations(list_taps(model), name)
    else:
        with pytest.raises(UserError, match="no layer of the size of the LR image goes straight into an activation"):
            chain_before_activations(list_taps(model), name)


@pytest.mark.parametrize(
    "name",
    [
        "ReLU",
        "ReLU6",
        "LeakyReLU",
        "PReLU",
        "RReLU",
        "ELU",
        "CELU",
        "SELU",
        "GELU",
        "SiLU",
        "Mish",
        "Softplus",
        "Hardswish",
    ],
)
def test_activations_are_known(name):
    body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), getattr(nn, name)(), nn.Conv2d(4, 3, 3, padding=1))
    points = list_taps(SRModel(body, ModelSpec(name="t", scale=1)))
    assert [(point.path, point.before_activation) for point in points] == [("0", True), ("1", False), ("2", False)]


def test_activation_boundary_compares_maps_before_the_activation():
    student = build_model(architecture(type="mobile_sr", num_feat=8, num_block=3), 2)
    teacher = build_model(architecture(type="edsr", num_feat=8, num_block=4), 2)
    objective = Objective([{"type": "activation_boundary"}], student, teacher, count=2)
    assert [(p.student.path, p.teacher.path) for p in objective.pairs] == [
        ("body.1.0", "body.1.conv1"),
        ("body.2.0", "body.3.conv1"),
    ]
    both = Objective([{"type": "activation_boundary"}, {"type": "fitnet"}], student, teacher, count=1)
    assert [p.student.path for pairs in both.task.pairs.values() for p in pairs] == ["body.2.0", "body.2"]
    values = both(Batch(torch.rand(2, 3, 16, 16), torch.rand(2, 3, 32, 32)))[1]
    assert all(value > 0 for value in values.values())


@pytest.mark.parametrize(
    ("pair", "named"), [(("body.2", "body.3.conv1"), "body.2"), (("body.2.0", "body.3"), "body.3")]
)
def test_a_tap_that_contradicts_the_definition_is_refused(pair, named):
    student = build_model(architecture(type="mobile_sr", num_feat=8, num_block=3), 2)
    teacher = build_model(architecture(type="edsr", num_feat=8, num_block=4), 2)
    pairs = [{"student": pair[0], "teacher": pair[1]}]
    with pytest.raises(UserError, match=f"the layer {named} does not go into an activation function"):
        Objective([{"type": "activation_boundary"}], student, teacher, pairs=pairs)
    Objective([{"type": "fitnet"}], student, teacher, pairs=pairs)


def test_tokens_become_maps():
    tokens = torch.arange(24.0).view(1, 6, 4)
    as_image = as_map(tokens, (2, 3), "t")
    assert as_image.shape == (1, 4, 2, 3)
    assert torch.equal(as_image[0, :, 1, 2], tokens[0, 5])
    for other in (torch.zeros(1, 5, 4), torch.zeros(3), (torch.zeros(1),), None):
        with pytest.raises(UserError, match="is not a feature map"):
            as_map(other, (2, 3), "t")


class _PadsInside(nn.Module):
    """As CRAFT does: pads to the next multiple of 16 at the right and bottom, always."""

    def __init__(self):
        super().__init__()
        self.body = nn.Identity()

    def forward(self, x):
        height, width = x.shape[-2:]
        padded = self.body(nn.functional.pad(x, (0, 16 - width % 16, 0, 16 - height % 16), mode="replicate"))
        return padded[..., :height, :width]


def test_padding_is_cut_off_the_maps():
    lr = torch.rand(2, 3, 20, 33)
    inside = SRModel(_PadsInside(), ModelSpec(name="t", scale=1))
    assert torch.equal(Taps(inside, ["body"]).run(lr).features["body"], lr)
    outside = SRModel(_PadsInside(), ModelSpec(name="t", scale=1, size_multiple=8))
    assert torch.equal(Taps(outside, ["body"]).run(lr).features["body"], lr)


def test_windows_larger_than_the_image_leave_maps_their_size():
    model = build_model(architecture(type="hit_srf", embed_dim=16, depths=[6], num_heads=[2]), 2)
    points = list_taps(model)
    maps = Taps(model, [point.path for point in points]).run(torch.rand(2, 3, 9, 12)).features
    assert "layers.0.residual_group.blocks.5.correlation" in maps
    for point in points:
        assert maps[point.path].shape == (2, point.channels, 9 * point.stride, 12 * point.stride), point


def test_a_wrong_path_names_the_nearest():
    model = build_model(small("edsr"), 2)
    with pytest.raises(UserError, match=r"edsr has no layer 'body\.9'\. Near: body\.1"):
        Taps(model, ["body.9"])
    with pytest.raises(UserError, match=r"no layer 'bodi\.1' that gives a feature map\. Near: body\.1"):
        pairs = [{"student": "bodi.1", "teacher": "body.1"}]
        choose_pairs(model, model, validate(FeatureOptions, {"pairs": pairs}, "t"))


class _InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.act, self.unused, self.up = (
            nn.Conv2d(3, 4, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(3, 3, 1),
            nn.Conv2d(4, 3, 1),
        )

    def forward(self, x):
        return self.up(self.act(self.conv(x)))


def test_a_later_in_place_layer_does_not_change_what_was_read():
    model = SRModel(_InPlace(), ModelSpec(name="t", scale=1))
    lr = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        maps = Taps(model, ["conv"]).run(lr).features
        torch.testing.assert_close(maps["conv"], model.net.conv(lr))
    assert maps["conv"].min() < 0


def test_a_silent_layer_is_an_error():
    model = SRModel(_InPlace(), ModelSpec(name="t", scale=1))
    with pytest.raises(UserError, match="the layers unused did not run"):
        Taps(model, ["conv", "unused"]).run(torch.rand(1, 3, 8, 8))


def test_a_teacher_with_its_output_at_hand_runs_no_deeper_than_the_deepest_tap():
    model = build_model(small("edsr"), 2)
    ran = []
    model.net.conv_last.register_forward_hook(lambda *_: ran.append("last"))
    need = Need(sr=True, paths=frozenset({"body.0", "body.1"}))
    teacher = TappedTeacher(Teacher(model), need)
    lr, stored = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 32, 32)
    shallow = teacher(lr, need, stored_sr=stored)
    assert ran == []
    assert shallow.sr is stored
    deep = teacher.train()(lr, need)
    assert ran == ["last"]
    assert not teacher.teacher.model.training
    for path in ("body.0", "body.1"):
        assert torch.equal(shallow.features[path], deep.features[path])
        assert not shallow.features[path].requires_grad
    torch.testing.assert_close(deep.sr, teacher.teacher(lr))


def _pair(student_channels, teacher_channels, adapter):
    student, teacher = TapPoint("a", student_channels, 1, "Conv2d"), TapPoint("b", teacher_channels, 1, "Conv2d")
    return FeaturePair(student, teacher, adapter)


@pytest.mark.parametrize("kind", ["conv1x1", "conv3x3"])
def test_adapters_bring_channels_and_size(kind):
    adapter = Adapter(_pair(4, 7, kind))
    assert adapter(torch.rand(2, 4, 8, 6), torch.rand(2, 7, 16, 12)).shape == (2, 7, 16, 12)
    assert {p.shape[-1] for p in adapter.parameters() if p.ndim == 4} == {1 if kind == "conv1x1" else 3}


def test_no_adapter_needs_equal_channels():
    assert Adapter(_pair(4, 4, "none"))(torch.ones(1, 4, 2, 2), torch.ones(1, 4, 4, 4)).shape == (1, 4, 4, 4)
    with pytest.raises(UserError, match=r"a \(4 channels\) - b \(7 channels\): choose conv1x1"):
        Adapter(_pair(4, 7, "none"))


def test_a_term_on_features_is_the_mean_over_pairs_and_trains_student_and_adapters():
    student, model = (
        build_model(small("mobile_sr"), 2),
        build_model(architecture(type="edsr", num_feat=12, num_block=2), 2),
    )
    objective = Objective([{"type": "fitnet"}, {"type": "attention_transfer"}], student, model, count=2)
    task, pairs = objective.task, objective.pairs
    batch = Batch(torch.rand(2, 3, 16, 16), torch.rand(2, 3, 32, 32))
    total, values = objective(batch)
    lr, teacher = batch.lr, objective.given(batch)["teacher"]
    maps = Taps(student, [pair.student.path for pair in pairs]).run(lr).features
    by_hand = [
        nn.functional.mse_loss(objective.adapters[i].conv(maps[pair.student.path]), teacher.features[pair.teacher.path])
        for i, pair in enumerate(pairs)
    ]
    torch.testing.assert_close(values["fitnet_features"], torch.stack(by_hand).mean().detach())
    total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in task.adapters.parameters())
    assert student.net.head[0].expand.grad.abs().max() > 0
    assert all(p.grad is None for p in model.parameters())


def test_no_adapter_is_made_that_no_loss_uses():
    student = build_model(small("mobile_sr"), 2)
    assert len(Objective([{"type": "spatial_affinity"}], student, build_model(small("edsr"), 2)).task.adapters) == 0


@pytest.mark.parametrize("samples", ["images", "patches"])
@pytest.mark.parametrize("name", ["similarity", "pkt", "rkd"])
def test_relations_between_images_or_patches(name, samples):
    options = terms({"type": name, "samples": samples, **({"patch": 4} if samples == "patches" else {})})[0]

    def loss(student, teacher):
        return options(*options.arguments(None, student, teacher))

    student, teacher = torch.rand(4, 5, 8, 8), torch.rand(4, 7, 8, 8)
    assert loss(student, teacher).isfinite()
    if samples == "patches":
        assert loss(student[:1], teacher[:1]).isfinite()  # one image is enough: it has four patches
    else:
        with pytest.raises(ValueError, match="relations between samples"):
            loss(student[:1], teacher[:1])


def test_relations_between_maps_pooled_to_vectors():
    from sr_distill.losses import similarity

    student, teacher = torch.rand(4, 5, 8, 6), torch.rand(4, 7, 8, 6)
    for pool in (1, 2):
        loss = terms({"type": "similarity", "pool": pool})[0]
        vectors = [nn.functional.adaptive_avg_pool2d(x, pool).flatten(1) for x in (student, teacher)]
        torch.testing.assert_close(loss(*loss.arguments(None, student, teacher)), similarity(*vectors))
    with pytest.raises(UserError, match="pool has no effect with samples: patches"):
        terms({"type": "pkt", "pool": 2, "samples": "patches"})


def test_maps_in_units_of_the_teachers_deviation():
    """Each layer's, of the first step: kept, and the same for values and for what the rest of the teacher makes of them."""
    student, teacher = build_model(small("mobile_sr"), 2), build_model(small("edsr"), 2)
    losses = [{"type": "fitnet"}, {"type": "normalised_difference"}, {"type": "spatial_affinity"}]
    objective = Objective(losses, student, teacher, count=2, normalise="teacher")
    batch = Batch(torch.rand(2, 3, 16, 16), torch.rand(2, 3, 32, 32))
    maps = Taps(teacher, [pair.teacher.path for pair in objective.pairs]).run(batch.lr).features.values()
    own = Taps(student, [pair.student.path for pair in objective.pairs]).run(batch.lr).features.values()
    deviations = [t.detach().std(correction=0) for t in maps]
    expected = [F.mse_loss(a.conv(s), t / d) for a, s, t, d in zip(objective.adapters, own, maps, deviations)]
    _, values = objective(batch)
    torch.testing.assert_close(values["fitnet_features"], torch.stack(expected).mean())
    kept = [a.units.deviation for a in objective.adapters]
    torch.testing.assert_close(torch.stack(kept), torch.stack(deviations))
    objective(Batch(3 * batch.lr, batch.hr))
    torch.testing.assert_close(torch.stack(kept), torch.stack(deviations))
    assert [key for key in objective.task.helpers.state_dict() if key.endswith("deviation")]


@pytest.mark.parametrize("loss", [{"type": "l1", "on": "decoded"}, {"type": "fitnet"}])
def test_a_twin_of_the_teacher_costs_nothing_in_any_units(loss):
    """Without an adapter both maps are divided, and multiplied again before the rest of the teacher runs on."""
    teacher = build_model(small("edsr"), 2)
    twin = copy.deepcopy(teacher)
    objective = Objective([loss], twin, teacher, count=2, adapter="none", normalise="teacher")
    total, _ = objective(Batch(torch.rand(2, 3, 16, 16), torch.rand(2, 3, 32, 32)))
    assert total.item() == pytest.approx(0, abs=1e-5)
    assert all(a.units.deviation not in (0, 1) for a in objective.adapters)


def test_fcfd_in_units_of_the_teachers_deviation():
    student, teacher = build_model(small("mobile_sr"), 2), build_model(small("edsr"), 2)
    batch, values = Batch(torch.rand(2, 3, 16, 16), torch.rand(2, 3, 32, 32)), []
    for normalise in ("none", "teacher"):
        torch.manual_seed(0)
        losses = [{"type": "fcfd", "path_maps": 0.0, "path_outputs": 0.0, "appearance": 1.0}]
        objective = Objective(losses, student, teacher, count=1, normalise=normalise)
        values.append(objective(batch)[0])
    (pair,) = objective.pairs
    paths = objective.task.terms[0].module
    t = Taps(teacher, [pair.teacher.path]).run(batch.lr).features[pair.teacher.path].detach()
    s = Taps(student, [pair.student.path]).run(batch.lr).features[pair.student.path]
    bridged = paths.to_teacher["0"](s, t)
    torch.testing.assert_close(values[0], F.mse_loss(bridged, t))
    torch.testing.assert_close(values[1], F.mse_loss(bridged, t / t.std(correction=0)))


def test_layers_that_come_out_of_a_relu_are_known():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.act = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True)
            self.block = Block()
            self.last = nn.Conv2d(4, 3, 3, padding=1)

        def forward(self, x):
            return self.last(self.block(self.act(self.conv(x))))

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            return F.relu(self.inner(x))

    rectified = {tap.path for tap in list_taps(SRModel(Net(), ModelSpec(name="net", scale=1))) if tap.rectified}
    assert rectified == {"act", "block"}
