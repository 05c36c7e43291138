"""The rest of a network from a changed map, and the terms that need it: decoded maps and FCFD."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sr_distill.contracts import Batch
from sr_distill.errors import UserError
from sr_distill.features import ReplayTaps, TappedTeacher, choose_pairs, list_taps
from sr_distill.models import ARCHITECTURES, ModelSpec, SRModel, Teacher, build_model
from sr_distill.options import LossOptions, validate
from sr_distill.options.schema import FeatureOptions
from sr_distill.train import DistillationTask

from ..conftest import architecture, small


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_layers_own_map_leads_to_the_networks_own_output(name):
    """From every layer of every network, at a size that needs padding."""
    model = build_model(small(name), 2).eval()
    paths = [point.path for point in list_taps(model)]
    with torch.no_grad():
        seen = ReplayTaps(model, paths).run(torch.rand(2, 3, 20, 27))
        order = list(seen.features)
        for path in paths:
            again = seen.rest(path, seen.features[path])
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
    got = seen.rest(point.path, feature).sr
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    gradients = [torch.autograd.grad(sr.square().sum(), feature)[0] for sr in (got, expected)]
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-3)


def test_layers_before_the_place_do_not_run_again_and_it_stops_where_asked():
    model = build_model(architecture(type="edsr", num_feat=8, num_block=4), 2)
    seen = ReplayTaps(model, ["body.1", "body.2"]).run(torch.rand(1, 3, 16, 16))
    ran = []
    for path in ("conv_first", "body.0.conv1", "body.1.conv1", "body.2.conv1", "body.3.conv1", "conv_last"):
        model.net.get_submodule(path).register_forward_hook(lambda *_, path=path: ran.append(path))
    feature = torch.rand(1, 8, 16, 16)
    whole = seen.rest("body.1", feature)
    # A layer that is handed on still reports that it was called; those inside it do not run.
    assert ran == ["conv_first", "body.2.conv1", "body.3.conv1", "conv_last"]
    ran.clear()
    part = seen.rest("body.1", feature, until="body.2")
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
        seen.rest("body.0", torch.rand(1, 7, 16, 16))
    with pytest.raises(UserError, match=r"body\.0 does not run after body\.1"):
        seen.rest("body.1", torch.rand(1, 8, 16, 16), until="body.0")


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
            torch.testing.assert_close(seen.rest(path, seen.features[path]).sr, seen.sr)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert all(m.track_running_stats for m in model.modules() if isinstance(m, nn.BatchNorm2d))


def _task(*losses, student=None, teacher=None, count=3, adapter="conv1x1"):
    student = student or build_model(architecture(type="mobile_sr", num_feat=8, num_block=3), 2)
    teacher = teacher or build_model(architecture(type="edsr", num_feat=12, num_block=4), 2)
    pairs = choose_pairs(student, teacher, FeatureOptions(count=count, adapter=adapter))
    terms = [validate(LossOptions, loss, "test") for loss in losses]
    task = DistillationTask(student, terms, {"teacher": pairs})
    need_sr = any(term.on == "sr" and term.source == "teacher" for term in terms)
    replay = any(term.replays_teacher for term in terms)
    running = TappedTeacher(Teacher(teacher), [pair.teacher.path for pair in pairs], need_sr, replay)
    return task, running, Batch(torch.rand(3, 3, 16, 24), torch.rand(3, 3, 32, 48))


def _edsr_from_its_last_block(net, lr, feature):
    """What follows in basicsr's EDSR, written out."""
    first = net.conv_first((lr - net.mean) * net.img_range)
    return net.conv_last(net.upsample(net.conv_after_body(feature) + first)) / net.img_range + net.mean


def test_decoded_l1_is_the_difference_of_two_images_of_the_teacher():
    task, teacher, batch = _task({"type": "l1", "on": "features", "space": "decoded"}, count=1)
    given = teacher(batch.lr)
    _, terms = task(batch, {"teacher": given})
    assert list(terms) == ["l1_features_decoded"]
    pair, net = task.pairs["teacher"][0], teacher.teacher.model.net
    adapted = task.adapters["from_teacher"][0].conv(task.predict(batch.lr).features[pair.student.path])
    sr = _edsr_from_its_last_block(net, batch.lr, adapted)
    torch.testing.assert_close(terms["l1_features_decoded"], F.l1_loss(sr, teacher.teacher.model(batch.lr)).detach())


SPACES = [("l1", "decoded"), *((n, s) for n in ("perceptual", "lpips") for s in ("decoded", "projected", "normalised"))]


@pytest.mark.parametrize(("name", "space"), SPACES)
def test_every_space_is_zero_for_the_teachers_own_maps_and_trains_the_student(name, space, random_backbones):
    loss = {"type": name, "on": "features", "space": space}
    teacher = build_model(architecture(type="edsr", num_feat=8, num_block=3), 2)
    task, running, batch = _task(loss, teacher=teacher)
    total, _ = task(batch, {"teacher": running(batch.lr)})
    assert total.item() > 0
    total.backward()
    assert task.student.net.body[0].weight.grad.abs().max() > 0
    assert all(p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in task.adapters.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    same, running, batch = _task(loss, student=teacher, teacher=teacher, adapter="none")
    assert same(batch, {"teacher": running(batch.lr)})[0].item() == pytest.approx(0, abs=1e-6)


def test_projected_maps_are_principal_components():
    from sr_distill.losses.scene import Projection

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
    small_maps = torch.rand(1, 6, 8, 12)
    assert project(small_maps, small_maps)[0].shape == (1, 3, 32, 48)
    with pytest.raises(UserError, match="at least 3 channels"):
        Projection(_pair(4, 2, "conv1x1"))


def test_fcfd_with_one_pair_is_what_the_paper_writes():
    """One tap: the only path each way; appearance and both functions against the networks written out."""
    parts = {"appearance": 0.5, "student_to_teacher": 2.0, "teacher_to_student": 3.0}
    task, teacher, batch = _task({"type": "fcfd", **parts}, {"type": "l1"}, count=1)
    given = teacher(batch.lr)
    total, terms = task(batch, {"teacher": given})
    assert list(terms) == ["fcfd_features", "l1_sr_hr"]
    pair = task.pairs["teacher"][0]
    net, body = teacher.teacher.model.net, task.student.net.body
    s, t = body[:-1](batch.lr), given.features[pair.teacher.path]
    assert pair.student.path == f"body.{len(body) - 2}"
    adapted = task.adapters["from_teacher"][0].conv(s)
    back = task.terms[0].to_student[0].conv(t)
    own = teacher.teacher.model(batch.lr)
    through_teacher = _edsr_from_its_last_block(net, batch.lr, adapted)
    through_student = task.student.net.upsampler(body[-1](back) + batch.lr.repeat_interleave(4, dim=1))
    by_hand = 0.5 * F.mse_loss(adapted, t) + 2 * F.l1_loss(through_teacher, own) + 3 * F.l1_loss(through_student, own)
    torch.testing.assert_close(terms["fcfd_features"], by_hand.detach())
    weights = [body[0].weight, body[-1].weight, *task.adapters.parameters(), *task.terms.parameters()]
    expected = torch.autograd.grad(by_hand + F.l1_loss(task.student(batch.lr), batch.hr), weights)
    for got, wanted in zip(torch.autograd.grad(total, weights), expected):
        torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-4)


def test_fcfd_mixes_paths_at_random_and_reaches_everything():
    teacher = SRModel(_Normalised(6), ModelSpec(name="t", scale=1))
    student = SRModel(_Normalised(4), ModelSpec(name="s", scale=1))
    task, running, batch = _task({"type": "fcfd", "paths": 2}, {"type": "fitnet"}, student=student, teacher=teacher)
    batch = Batch(batch.lr, batch.lr)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    seen, reached = [], set()
    statistics = student.net.second[1]
    for step in range(12):
        task.terms[0].set_extra_state(step)
        task.zero_grad(set_to_none=True)
        count = int(statistics.num_batches_tracked)
        total, terms = task.train()(batch, {"teacher": running(batch.lr)})
        assert int(statistics.num_batches_tracked) == count + 1  # the step's own pass, not the paths
        total.backward()
        reached |= {name for name, p in task.named_parameters() if p.grad is not None}
        seen.append(terms["fcfd_features"].item())
        assert all(p.grad is None or p.grad.isfinite().all() for p in task.parameters())
    assert len({round(value, 4) for value in seen}) > 2  # different paths
    assert reached == {name for name, _ in task.named_parameters()}
    assert all(p.grad is None for p in teacher.parameters())
    for key, value in teacher.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_fcfd_draws_the_same_paths_again():
    values = []
    for start in (0, 0, 5):
        torch.manual_seed(0)
        task, running, batch = _task({"type": "fcfd"})
        given = running(batch.lr)
        for _ in range(5 if start == 0 else 0):
            task(batch, {"teacher": given})
        if start:
            task.helpers.load_state_dict(task.helpers.state_dict() | {"terms.0._extra_state": start})
        values.append([task(batch, {"teacher": given})[1]["fcfd_features"].item() for _ in range(6)])
    assert values[0] == values[1] == values[2]
    assert len(set(values[0])) > 1
