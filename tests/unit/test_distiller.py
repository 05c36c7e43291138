"""The objective in somebody else's loop."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sr_distill
from sr_distill import Distiller
from sr_distill.errors import UserError
from sr_distill.losses import similarity
from sr_distill.models import build_model, load_model

from ..conftest import ROOT, small


def _network(width, scale=2):
    layers = [nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 3 * scale**2, 3, padding=1)]
    return nn.Sequential(*layers, nn.PixelShuffle(scale))


LOSSES = [{"type": "l1"}, {"type": "l1", "against": "teacher", "weight": 0.5}, {"type": "fitnet", "weight": 0.1}]


def test_plain_networks():
    student, teacher = _network(4), _network(6)
    distiller = Distiller(student, teacher, LOSSES, pairs=[("1", "1")])
    assert distiller.student is student
    lr, hr = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 16, 16)
    total, terms = distiller(lr, hr)
    sr, target = student(lr), teacher(lr).clamp(0, 1)
    assert list(terms) == ["l1_sr_hr", "l1_sr_teacher", "fitnet_features"]
    torch.testing.assert_close(terms["l1_sr_hr"], F.l1_loss(sr, hr).detach())
    torch.testing.assert_close(terms["l1_sr_teacher"], F.l1_loss(sr, target).detach())
    adapted = next(iter(distiller.task.adapters.values()))[0].conv(student[:2](lr))
    torch.testing.assert_close(terms["fitnet_features"], F.mse_loss(adapted, teacher[:2](lr)).detach())
    by_hand = (
        F.l1_loss(sr, hr) + 0.5 * F.l1_loss(sr, target.detach()) + 0.1 * F.mse_loss(adapted, teacher[:2](lr).detach())
    )
    torch.testing.assert_close(total, by_hand)
    gradient = torch.autograd.grad(total, student[0].weight, retain_graph=True)[0]
    torch.testing.assert_close(gradient, torch.autograd.grad(by_hand, student[0].weight)[0])
    weighed, _ = distiller(lr, hr, weights=[0.0, 0.0, 1.0])
    torch.testing.assert_close(weighed.detach(), terms["fitnet_features"])


def test_the_teacher_is_no_part_of_it_but_moves_along():
    student, teacher = _network(4), _network(6)
    distiller = Distiller(student, teacher, LOSSES).train()
    own = set(map(id, distiller.parameters()))
    assert own >= set(map(id, student.parameters()))
    assert not own & set(map(id, teacher.parameters()))
    teachers = {value.data_ptr() for value in teacher.state_dict().values()}
    assert not teachers & {value.data_ptr() for value in distiller.state_dict().values()}
    assert not teacher.training
    assert student.training
    distiller.double()
    assert next(teacher.parameters()).dtype == torch.float64
    total, _ = distiller(torch.rand(1, 3, 8, 8).double(), torch.rand(1, 3, 16, 16).double())
    total.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_networks_of_this_package_and_automatic_pairs():
    distiller = Distiller(build_model(small("mobile_sr", color="y"), 3), build_model(small("rlfn"), 3), LOSSES, count=2)
    assert [1 <= len(pairs) <= 2 for pairs in distiller.task.pairs.values()] == [True]
    total, terms = distiller(torch.rand(2, 3, 16, 16), torch.rand(2, 3, 48, 48))
    assert total.isfinite()
    assert len(terms) == 3


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"count": 2}, "pairs, count, adapter or normalise has no effect"),
        ({"self_ensemble": True, "losses": [{"type": "fitnet"}]}, "self_ensemble has no effect"),
        ({"adapter": "conv3x3", "losses": [{"type": "pkt"}]}, "adapter has no effect"),
        ({"normalise": "teacher", "losses": [{"type": "similarity"}]}, "normalise has no effect"),
        ({"losses": [{"type": "l1"}]}, "the teacher teacher has no effect"),
        ({"losses": [{"type": "l1", "against": "teacher"}] * 2}, "several losses are called l1_sr_teacher"),
    ],
)
def test_what_has_no_effect_is_refused(change, expected):
    arguments = {
        "student": _network(4),
        "teacher": _network(6),
        "losses": [{"type": "l1", "against": "teacher"}],
    } | change
    with pytest.raises(UserError, match=expected):
        Distiller(**arguments)


def test_a_network_is_not_its_own_teacher():
    network = _network(4)
    with pytest.raises(UserError, match="weights of a student are also the teacher's"):
        Distiller(network, network, LOSSES, pairs=[("1", "1")])
    other = _network(4)
    other[2] = network[2]
    with pytest.raises(UserError, match="weights of a student are also the b's, and would be frozen"):
        Distiller(network, {"a": _network(6), "b": other}, [{"type": "l1", "against": "teacher"}])
    assert all(weight.requires_grad for weight in network.parameters())


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_every_teacher_has_a_share(weight):
    teachers, losses = {"a": _network(6), "b": _network(4)}, [{"type": "l1", "against": "teacher"}]
    with pytest.raises(UserError, match=f"teacher_weights: that of b is {weight}, and each is a number above 0"):
        Distiller(_network(4), teachers, losses, teacher_weights={"a": 1.0, "b": weight})


def test_the_student_is_what_was_given():
    student, peer = (build_model(small("mobile_sr", color="y"), 2) for _ in range(2))
    losses = [{"type": "l1"}, {"type": "l1", "against": "peers"}]
    distiller = Distiller(student, None, losses, peers=[peer])
    assert distiller.student is student
    assert distiller.peers == [peer]


def test_in_half_precision_what_is_trained_for_losses_stays_in_full():
    """As losses are computed; Lightning's bf16-true casts everything that it finds."""
    losses = [
        {"type": "fitnet"},
        {"type": "fcfd"},
        {"type": "contrastive_representation"},
        {"type": "l1", "on": "decoded"},
    ]
    distiller = Distiller(_network(4), _network(6), losses, pairs=[("1", "1")]).to(torch.bfloat16)
    total, _ = distiller(torch.rand(2, 3, 8, 8).bfloat16(), torch.rand(2, 3, 16, 16).bfloat16())
    total.backward()
    student = {id(weight) for weight in distiller.student.parameters()}
    for weight in distiller.parameters():
        assert weight.dtype == weight.grad.dtype == (torch.bfloat16 if id(weight) in student else torch.float32)


def test_too_few_weights_are_noticed():
    distiller = Distiller(_network(4), _network(6), LOSSES, pairs=[("1", "1")])
    with pytest.raises(ValueError, match="zip"):
        distiller(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 16, 16), weights=[1.0])


def test_a_schedule_needs_to_know_the_step():
    losses = [{"type": "l1"}, {"type": "l1", "against": "teacher", "schedule": {"decay_to": 0}}]
    distiller = Distiller(_network(4), _network(6), losses)
    images = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 16, 16)
    with pytest.raises(UserError, match="give weights=distiller.weights_at"):
        distiller(*images)
    assert distiller.weights_at(5, 10) == [1.0, 0.5]
    assert set(distiller(*images, weights=distiller.weights_at(5, 10))[1]) == {"l1_sr_hr", "l1_sr_teacher"}


def test_the_networks_follow_the_callers_autocast_and_losses_do_not():
    """Networks run in bfloat16, so their outputs are rounded; losses of these are computed in float32."""
    student, teacher = _network(4), _network(6)
    losses = [{"type": "l1"}, {"type": "l1", "against": "teacher"}, {"type": "similarity", "pool": 4}]
    distiller = Distiller(student, teacher, losses, pairs=[("1", "1")])
    lr, hr = torch.rand(4, 3, 16, 16), torch.rand(4, 3, 32, 32)
    full = distiller(lr, hr)[1]
    with torch.autocast("cpu", torch.bfloat16):
        half = distiller(lr, hr)[1]
        sr, target, maps = student(lr).float(), teacher(lr).float().clamp(0, 1), (student[:2](lr), teacher[:2](lr))
    assert all(value.dtype == torch.float32 for value in half.values())
    assert full["l1_sr_hr"] != half["l1_sr_hr"]
    assert torch.equal(half["l1_sr_hr"], F.l1_loss(sr, hr).detach())
    assert torch.equal(half["l1_sr_teacher"], F.l1_loss(sr, target).detach())
    vectors = [F.adaptive_avg_pool2d(x.float(), 4).flatten(1) for x in maps]
    torch.testing.assert_close(half["similarity_features"], similarity(*vectors).detach(), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"losses": [{"type": "l3"}]}, r"losses\[0\]"),
        ({"pairs": [("0", "nothing")]}, "teacher has no layer 'nothing'"),
        ({"adapter": "conv5x5"}, "adapter"),
        ({"teacher": _network(4, scale=3)}, "student has scale 2 and the teacher 3"),
    ],
)
def test_mistakes_are_named(change, expected):
    arguments = {"student": _network(4), "teacher": _network(6), "losses": LOSSES, "pairs": [("1", "1")]} | change
    with pytest.raises(UserError, match=expected):
        Distiller(**arguments)


def _examples():
    page = (ROOT / "docs/own_loop.md").read_text()
    return [part.split("```")[0] for part in page.split("```python")[1:]]


def _run_example(index):
    names = {"__name__": "example"}
    exec(compile(_examples()[index], f"docs/own_loop.md example {index}", "exec"), names)
    return names


def test_the_examples_in_the_docs_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(_examples()) == 3
    _run_example(0)
    assert len(torch.load("student.pth", weights_only=True)) == 6
    names = _run_example(1)
    assert set(names["terms"]) == {"l1_sr_teacher", "fcfd_features_edsr", "l1_decoded_edsr"}
    assert load_model(tmp_path / "student.safetensors").spec.scale == 4


def test_the_lightning_example_in_the_docs_runs(tmp_path, monkeypatch):
    pytest.importorskip("lightning", reason="lightning is not installed (tests/requirements.txt)")
    monkeypatch.chdir(tmp_path)
    module = _run_example(2)["module"]
    assert module.weights == pytest.approx(
        [1.0, 0.1 * (1 - 3 / 4)]
    )  # the last of 6 steps, 3 of the 4 after the warm-up done
    assert len(torch.load("lightning_student.pth", weights_only=True)) == 4


def test_the_package_has_no_other_lazy_names():
    assert sr_distill.Distiller is Distiller
    with pytest.raises(AttributeError, match="no attribute 'Distill'"):
        _ = sr_distill.Distill


def test_students_may_learn_from_each_other_without_a_teacher():
    """Mutual learning: each from the other as it is, without gradient into it."""
    first, second = _network(4), _network(6)
    losses = [{"type": "l1"}, {"type": "l1", "against": "peers", "weight": 0.5}, {"type": "fitnet", "against": "peers"}]
    distiller = Distiller(first, None, losses, pairs=[("1", "1")], peers=[second])
    assert distiller.student is first
    assert distiller.peers == [second]
    lr, hr = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 16, 16)
    total, terms = distiller(lr, hr)
    a, b = first(lr), second(lr)
    torch.testing.assert_close(terms["l1_sr_peers"], F.l1_loss(a, b.clamp(0, 1)).detach())
    torch.testing.assert_close(terms["peer_1_l1_sr_hr"], F.l1_loss(b, hr).detach())
    total.backward()
    assert all(p.grad is not None for p in distiller.parameters())


def test_each_teacher_may_have_pairs_of_its_own():
    student, teachers = _network(4), {"a": _network(6), "b": _network(8)}
    losses = [{"type": "fitnet", "teacher": name} for name in teachers]
    distiller = Distiller(student, teachers, losses, pairs={"a": [("0", "1")], "b": [("1", "0")]})
    paths = {
        link.source: [(pair.student.path, pair.teacher.path) for pair in pairs]
        for link, pairs in distiller.task.pairs.items()
    }
    assert paths == {"a": [("0", "1")], "b": [("1", "0")]}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"teacher": None}, "compares with the teacher, but there is no teacher"),
        (
            {"teacher": None, "losses": [{"type": "l1"}], "pairs": "auto", "peers": [_network(4)]},
            "peers need such terms",
        ),
        ({"losses": [{"type": "l1", "against": "peers"}], "teacher": None}, "need peers"),
        ({"pairs": {"a": "auto"}}, "pairs names a, but the teachers are teacher"),
        ({"student": torch.nn.Linear(7, 3)}, "student cannot be run on RGB .* ModuleDistiller"),
        ({"teacher": torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(3))}, "ModuleDistiller"),
        ({"normalise": "student"}, "normalise"),
    ],
)
def test_more_mistakes_are_named(change, expected):
    arguments = {"student": _network(4), "teacher": _network(6), "losses": LOSSES, "pairs": [("1", "1")]} | change
    with pytest.raises(UserError, match=expected):
        Distiller(**arguments)
