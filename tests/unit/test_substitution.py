"""The rest of a network from a changed map, and the terms that need it: decoded maps and FCFD."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sr_distill.contracts import Batch
from sr_distill.data import luma
from sr_distill.errors import UserError
from sr_distill.features import ReplayTaps, Taps, list_taps
from sr_distill.models import ARCHITECTURES, ModelSpec, SRModel, build_model

from ..conftest import ROOT, Objective, architecture, small


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_layers_own_map_leads_to_the_networks_own_output(name):
    """From every layer of every network, at a size that needs padding."""
    model = build_model(small(name), 2).eval()
    paths = [point.path for point in list_taps(model)]
    with torch.no_grad():
        seen = ReplayTaps(model, paths).run(torch.rand(2, 3, 20, 27))
        order = list(seen.features)
        for path in paths:
            again = seen.forward_from(path, seen.features[path])
            torch.testing.assert_close(again.sr, seen.sr, atol=1e-6, rtol=1e-5)
            assert list(again.features) == [p for p in order[order.index(path) + 1 :] if p in again.features]
            for later, value in again.features.items():
                torch.testing.assert_close(value, seen.features[later], atol=1e-6, rtol=1e-5)
    assert not any(module.__dict__.get("forward") or module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_changed_map_leads_where_a_hook_would_lead(name):
    """Value and gradient of the rest against the whole network run with the layer's output exchanged by a hook."""
    model = build_model(small(name), 2).eval()
    lr = torch.rand(1, 3, 32, 32)
    point = list_taps(model)[len(list_taps(model)) // 2]
    seen = ReplayTaps(model, [point.path]).run(lr)
    feature = torch.randn_like(seen.features[point.path]).requires_grad_()

    def exchange(module, inputs, output):
        return feature.clone() if output.ndim == 4 else feature.flatten(2).transpose(1, 2)

    handle = model.net.get_submodule(point.path).register_forward_hook(exchange)
    expected = model(lr)
    handle.remove()
    got = seen.forward_from(point.path, feature).sr
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    gradients = [torch.autograd.grad(sr.square().sum(), feature)[0] for sr in (got, expected)]
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-3)


def test_layers_before_the_place_do_not_run_again_and_it_stops_where_asked():
    model = build_model(architecture(type="edsr", num_feat=8, num_block=4), 2)
    seen = ReplayTaps(model, ["body.1", "body.2", "body.3"]).run(torch.rand(1, 3, 16, 16))
    ran = []
    for path in ("conv_first", "body.0.conv1", "body.1.conv1", "body.2.conv1", "body.3.conv1", "conv_last"):
        model.net.get_submodule(path).register_forward_hook(lambda *_, path=path: ran.append(path))
    feature = torch.rand(1, 8, 16, 16)
    whole = seen.forward_from("body.1", feature)
    # A layer that is handed on still reports that it was called; those inside it do not run.
    assert ran == ["conv_first", "body.2.conv1", "body.3.conv1", "conv_last"]
    ran.clear()
    part = seen.forward_from("body.1", feature, until="body.2")
    assert "body.3.conv1" not in ran
    assert part.sr is None
    assert list(part.features) == ["body.2"]
    torch.testing.assert_close(part.features["body.2"], whole.features["body.2"])
    expected = model.net.body[2](feature)
    torch.testing.assert_close(part.features["body.2"], expected)


def test_mistakes_are_named():
    model = build_model(small("edsr"), 2)
    seen = ReplayTaps(model, ["body.0", "body.1"]).run(torch.rand(1, 3, 16, 16))
    with pytest.raises(UserError, match=r"body\.0 gives a map of shape \(1, 8, 16, 16\); \(1, 7, 16, 16\) cannot"):
        seen.forward_from("body.0", torch.rand(1, 7, 16, 16))
    with pytest.raises(UserError, match=r"body\.0 does not run after body\.1"):
        seen.forward_from("body.1", torch.rand(1, 8, 16, 16), until="body.0")


class _Normalised(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.LeakyReLU(0.1))
        self.last = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x):
        return self.last(F.leaky_relu(self.second(self.first(x)), 0.2, inplace=True))


def test_in_place_layers_and_normalisation():
    model = SRModel(_Normalised(6), ModelSpec(name="t", scale=1)).train()
    lr = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        seen = ReplayTaps(model, ["first.0", "first", "second"]).run(lr)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        for path in ("first.0", "first", "second", "second"):  # twice: what is handed on is not used up
            torch.testing.assert_close(seen.forward_from(path, seen.features[path]).sr, seen.sr)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert all(m.track_running_stats for m in model.modules() if isinstance(m, nn.BatchNorm2d))


def _objective(*losses, student=None, teacher=None, **features):
    student = student or build_model(architecture(type="mobile_sr", num_feat=8, num_block=3), 2)
    teacher = teacher or build_model(architecture(type="edsr", num_feat=12, num_block=4), 2)
    return Objective(losses, student, teacher, **features), Batch(torch.rand(3, 3, 16, 24), torch.rand(3, 3, 32, 48))


def _edsr_from_its_last_block(net, lr, feature):
    """What follows in EDSR, written out."""
    first = net.conv_first((lr - net.mean) * 255)
    return net.conv_last(net.upsample(net.conv_after_body(feature) + first)) / 255 + net.mean


def test_decoded_l1_is_the_difference_of_two_images_of_the_teacher():
    objective, batch = _objective({"type": "l1", "on": "decoded"}, count=1)
    _, values = objective(batch)
    assert list(values) == ["l1_decoded"]
    pair, teacher = objective.pairs[0], objective.teachers["teacher"].teacher.model
    seen = Taps(objective.student, [pair.student.path]).run(batch.lr).features[pair.student.path]
    sr = _edsr_from_its_last_block(teacher.net, batch.lr, objective.adapters[0].conv(seen))
    torch.testing.assert_close(values["l1_decoded"], F.l1_loss(sr, teacher(batch.lr)).detach())


MADE_IMAGES = [("l1", "decoded"), *((n, on) for n in ("perceptual", "lpips") for on in ("decoded", "projected"))]


@pytest.mark.parametrize(("name", "on"), [*MADE_IMAGES, ("normalised_difference", "features")])
def test_it_is_zero_for_the_teachers_own_maps_and_trains_the_student(name, on, random_backbones):
    loss = {"type": name, "on": on}
    teacher = build_model(architecture(type="edsr", num_feat=8, num_block=3), 2)
    objective, batch = _objective(loss, teacher=teacher)
    total, _ = objective(batch)
    assert total.item() > 0
    total.backward()
    assert objective.student.net.head[0].expand.grad.abs().max() > 0
    assert all(p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in objective.adapters.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    twin = copy.deepcopy(teacher).requires_grad_()
    same, batch = _objective(loss, student=twin, teacher=teacher, adapter="none")
    assert same(batch)[0].item() == pytest.approx(0, abs=1e-6)


def test_projected_maps_are_principal_components():
    from sr_distill.losses.projection import Projection

    from .test_features import _pair

    project = Projection(_pair(4, 6, "conv1x1"))
    maps = torch.randn(4, 6, 40, 40) * torch.tensor([5.0, 1, 3, 0.1, 0.1, 0.1]).view(6, 1, 1) + 7
    other, image = project(maps[:, [0] * 6], maps)
    assert image.shape == other.shape == (4, 3, 40, 40)
    values = image.movedim(1, 0).flatten(1)
    torch.testing.assert_close(values.mean(1), torch.full((3,), 0.5), atol=1e-4, rtol=0)
    torch.testing.assert_close(values.std(1), torch.full((3,), 0.25), atol=1e-3, rtol=0)
    correlation = torch.corrcoef(torch.cat([values, maps[:, [0, 2, 1]].movedim(1, 0).flatten(1)]))
    assert (
        correlation[:3, 3:].diagonal() > 0.99
    ).all()  # by falling variance: channels 0, 2, 1, and with positive sign
    weight = project.weight.clone()
    project(maps, maps * 3)
    assert torch.equal(project.weight, weight)  # fixed after the first step
    again = Projection(_pair(4, 6, "conv1x1"))
    again.load_state_dict(project.state_dict())
    assert torch.equal(again(maps, maps * 3)[0], project(maps, maps)[0])  # and a restored one is not fitted anew
    faint = Projection(_pair(4, 3, "conv1x1"))
    values = faint(torch.rand(1, 3, 40, 40), torch.randn(2, 3, 40, 40) * 1e-3)[1].movedim(1, 0).flatten(1)
    torch.testing.assert_close(values.std(1), torch.full((3,), 0.25), atol=1e-3, rtol=0)
    small_maps = torch.rand(1, 6, 8, 12)
    assert project(small_maps, small_maps)[0].shape == (1, 3, 32, 48)
    with pytest.raises(UserError, match="at least 3 channels"):
        Projection(_pair(4, 2, "conv1x1"))


def test_fcfd_with_one_pair_is_what_the_paper_writes():
    """One tap: the only path each way; appearance and both functions against the networks written out."""
    parts = {"appearance": 0.5, "path_maps": 7.0, "path_outputs": 2.0}
    objective, batch = _objective({"type": "fcfd", **parts}, {"type": "l1"}, count=1)
    task = objective.task
    total, values = objective(batch)
    assert list(values) == ["fcfd_features", "l1_sr_hr"]
    pair, teacher, net = objective.pairs[0], objective.teachers["teacher"].teacher.model, objective.student.net
    head = net.head(batch.lr)
    s, t = net.body(head), Taps(teacher, [pair.teacher.path]).run(batch.lr).features[pair.teacher.path]
    assert pair.student.path == f"body.{len(net.body) - 1}"
    paths = task.terms[0].module
    adapted, back = _bridged(paths.to_teacher["0"], s), _bridged(paths.to_student["0"], t, 0.1)
    own = teacher(batch.lr)
    through_teacher = _edsr_from_its_last_block(teacher.net, batch.lr, adapted)
    through_student = net.upsampler(net.tail(back + head) + batch.lr.repeat_interleave(4, dim=1))
    by_hand = 0.5 * F.mse_loss(adapted, t) + 2 * (F.l1_loss(through_teacher, own) + F.l1_loss(through_student, own))
    torch.testing.assert_close(values["fcfd_features"], by_hand.detach())
    assert len(task.adapters) == 0
    weights = [net.head[0].expand, net.tail.expand, *task.terms.parameters()]
    expected = torch.autograd.grad(by_hand + F.l1_loss(objective.student(batch.lr), batch.hr), weights)
    for got, wanted in zip(torch.autograd.grad(total, weights), expected):
        torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-4)


def _bridged(bridge, x, slope=1.0):
    """A bridge written out with PyTorch's own layers; into a map that comes out of a ReLU it has a slope of 0.1."""
    norm = nn.BatchNorm2d(len(bridge.norm.weight)).to(x.dtype)
    norm.weight, norm.bias = bridge.norm.weight, bridge.norm.bias
    return F.leaky_relu(norm(F.conv2d(x, bridge.conv.weight, padding=1)), slope)


def test_fcfd_takes_every_path_and_reaches_everything():
    teacher = SRModel(_Normalised(6), ModelSpec(name="t", scale=1))
    student = SRModel(_Normalised(4), ModelSpec(name="s", scale=1))
    objective, batch = _objective({"type": "fcfd", "paths": 1}, {"type": "fitnet"}, student=student, teacher=teacher)
    task, batch = objective.task, Batch(batch.lr, batch.lr)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    seen, reached = [], set()
    statistics = student.net.second[1]
    for step in range(12):
        task.terms[0].module.set_extra_state(step)
        task.zero_grad(set_to_none=True)
        count = int(statistics.num_batches_tracked)
        task.train()
        total, values = objective(batch)
        assert int(statistics.num_batches_tracked) == count + 1  # the step's own pass, not the paths
        total.backward()
        reached |= {name for name, p in task.named_parameters() if p.grad is not None}
        seen.append(values["fcfd_features"].item())
        assert all(p.grad is None or p.grad.isfinite().all() for p in task.parameters())
    assert len({round(value, 4) for value in seen}) > 1  # different paths
    assert reached == {name for name, _ in task.named_parameters()}
    assert all(p.grad is None for p in teacher.parameters())
    for key, value in teacher.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_fcfd_draws_by_seed_and_step():
    values = []
    for start, seed in ((0, 0), (0, 0), (5, 0), (5, 1)):
        torch.manual_seed(0)
        objective, batch = _objective({"type": "fcfd"}, seed=seed)
        for _ in range(5 if start == 0 else 0):
            objective(batch)
        if start:
            helpers = objective.task.helpers
            key = "terms.0.module._extra_state"
            assert key in helpers.state_dict()
            helpers.load_state_dict(helpers.state_dict() | {key: start})
        values.append([objective(batch)[1]["fcfd_features"].item() for _ in range(8)])
    assert values[0] == values[1] == values[2]
    assert values[2] != values[3]
    assert len(set(values[0])) > 1


def test_fcfd_asks_of_a_luma_student_what_it_can_change():
    """On a path that ends in a luma student the target has the student's chroma; what is left is luma alone."""
    student = build_model(architecture(type="mobile_sr", num_feat=8, num_block=3, color="y"), 2)
    loss = {"type": "fcfd", "appearance": 0.0, "direction": "teacher_to_student"}
    objective, batch = _objective(loss, student=student, count=1)
    _, values = objective(batch)
    pair, teacher = objective.pairs[0], objective.teachers["teacher"].teacher.model
    with torch.no_grad():
        t = Taps(teacher, [pair.teacher.path]).run(batch.lr).features[pair.teacher.path]
        back = _bridged(objective.task.terms[0].module.to_student["0"], t, 0.1)
        y = luma(batch.lr)
        through = student.net.upsampler(student.net.tail(back + student.net.head(y)) + y.repeat_interleave(4, dim=1))
        expected = (through - luma(teacher(batch.lr))).abs().mean() * 255 / 219
    torch.testing.assert_close(values["fcfd_features"], expected, atol=1e-6, rtol=1e-5)


FCFD = json.loads((ROOT / "tests/reference/fcfd.json").read_text())


class _Staged(nn.Module):
    """The networks of the reference: four convolutions and a head, each but the first on relu of what came before."""

    def __init__(self, channels, first):
        super().__init__()
        widths = [3, *channels, FCFD["channels"]["head"]]
        convs = [_by_formula(a, b, 3, first + k) for k, (a, b) in enumerate(itertools.pairwise(widths))]
        self.stages, self.head = nn.ModuleList(convs[:-1]), convs[-1]

    def forward(self, x):
        for index, stage in enumerate(self.stages):
            x = stage(x if index == 0 else F.relu(x))
        return self.head(F.relu(x))


def _by_formula(channels, out, side, k):
    conv = nn.Conv2d(channels, out, side, padding=side // 2, bias=False)
    i = torch.arange(conv.weight.numel(), dtype=torch.float64)
    values = 1.5 / (channels * side**2) ** 0.5 * torch.sin(0.7 * i + k)
    conv.weight = nn.Parameter(values.reshape(conv.weight.shape))
    return conv


def _published(term, path=None, weight=None):
    """Value, and sum g_i sin(i) of the gradient on a weight, with the authors' bridges; sum over stages."""
    cases = [c for c in FCFD["cases"] if (c["bridges"], c["term"], c.get("path")) == ("conv3x3_batchnorm", term, path)]
    assert cases
    gradients = [c["gradients"].get(weight, [0.0, 0.0])[1] for c in cases]
    return [sum(values) for values in ([c["value"] for c in cases], gradients)]


def _by_the_authors_rules(distance, **factors):
    """The networks of the reference with three pairs, weights by formula; also those of the bridges."""
    channels = FCFD["channels"]
    teacher = SRModel(_Staged(channels["teacher"], 11), ModelSpec(name="teacher", scale=1))
    student = SRModel(_Staged(channels["student"], 1), ModelSpec(name="student", scale=1))
    pairs = [{"student": f"stages.{k}", "teacher": f"stages.{k}"} for k in (1, 2, 3)]
    loss = {"type": "fcfd", "distance": distance, **factors}
    objective = Objective([loss], student, teacher, pairs=pairs)
    objective.task.double()
    paths = objective.task.terms[0].module
    for bridges, first in ((paths.to_teacher, 21), (paths.to_student, 31)):
        for index, bridge in bridges.items():
            out, into = bridge.conv.weight.shape[:2]
            bridge.conv = _by_formula(into, out, 3, first + int(index))
    i = torch.arange(2 * 3 * 8 * 8, dtype=torch.float64)
    image = (0.5 + 0.5 * torch.sin(0.7 * i + 0.3 * torch.sin(1.3 * i) + 0.3)).reshape(2, 3, 8, 8)
    return objective, Batch(image, image)


@pytest.mark.parametrize("distance", ["l1", "l2"])
@pytest.mark.parametrize("part", ["appearance", "path_maps", "into_teacher", "into_student", "all"])
def test_fcfd_equals_the_authors_code(part, distance):
    """Appearance, the maps and the ends of all paths, with the authors' bridges, factors and sums: value and gradients."""
    none = {"appearance": 0.0, "path_maps": 0.0, "path_outputs": 0.0}
    factors = {
        "appearance": none | {"appearance": 1.0},
        "path_maps": none | {"path_maps": 1.0, "direction": "student_to_teacher"},
        "into_teacher": none | {"path_outputs": 1.0, "direction": "student_to_teacher"},
        "into_student": none | {"path_outputs": 1.0, "direction": "teacher_to_student"},
        "all": {"paths": 4},
    }[part]
    if distance == "l2" and part in ("appearance", "path_maps"):
        return  # refused: it has no effect
    objective, batch = _by_the_authors_rules(distance, **factors)
    total, _ = objective(batch)
    ends = {"l1": "path_output_l1", "l2": "path_output_mse"}[distance]
    there, back = ([1, 1, 0, 0], [1, 1, 1, 0]), ([0, 0, 1, 1], [0, 0, 0, 1])
    maps, into_teacher, into_student = (
        [(name, path) for path in paths] for name, paths in (("path_map", there), (ends, there), (ends, back))
    )
    terms = {
        "appearance": [(1, ("appearance", None))],
        "path_maps": [(1, term) for term in maps],
        "into_teacher": [(1, term) for term in into_teacher],
        "into_student": [(1, term) for term in into_student],
        "all": [(5, ("appearance", None)), *((5, t) for t in maps), *((1, t) for t in (*into_teacher, *into_student))],
    }[part]
    student, paths = objective.student.net, objective.task.terms[0].module
    weights = {f"student.stages.{k}.weight": student.stages[k].weight for k in range(4)}
    weights["student.head.weight"] = student.head.weight
    for side in ("to_teacher", "to_student"):
        weights |= {f"{side}.{int(k) + 1}": bridge.conv.weight for k, bridge in getattr(paths, side).items()}
    gradients = torch.autograd.grad(total, list(weights.values()), allow_unused=True)
    assert total.item() == pytest.approx(sum(f * _published(*term)[0] for f, term in terms), rel=1e-9)
    for name, gradient in zip(weights, gradients):
        expected = sum(f * _published(*term, name)[1] for f, term in terms)
        got = (
            0.0
            if gradient is None
            else float((gradient.flatten() * torch.arange(gradient.numel(), dtype=torch.float64).sin()).sum())
        )
        assert got == pytest.approx(expected, rel=1e-5, abs=1e-8), name


def test_fcfd_draws_different_paths_and_never_crosses_at_the_last_pair():
    objective, _ = _by_the_authors_rules("l1")
    paths = objective.task.terms[0].module
    assert set(paths.paths) == {(True, 0), (True, 1), (False, 0), (False, 1)}
    assert set(paths.to_teacher) == {"0", "1", "2"}
    assert set(paths.to_student) == {"0", "1"}


def test_a_bridge_into_a_rectified_map_ends_in_leaky_relu():
    from sr_distill.features import Bridge

    from .test_features import _pair

    pair = _pair(4, 6, "conv1x1")
    rectified = dataclasses.replace(pair, teacher=dataclasses.replace(pair.teacher, rectified=True))
    plain, leaky = Bridge(pair), Bridge(rectified)
    leaky.load_state_dict(plain.state_dict())
    x, t = torch.randn(2, 4, 8, 8), torch.randn(2, 6, 8, 8)
    assert plain(x, t).min() < -0.5
    torch.testing.assert_close(leaky(x, t), F.leaky_relu(plain(x, t), 0.1))
