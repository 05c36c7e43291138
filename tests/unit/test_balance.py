"""Weights that are found by the size of gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sr_distill import Distiller
from sr_distill.contracts import Batch
from sr_distill.errors import UserError
from sr_distill.models import build_model
from sr_distill.options import RunOptions, validate
from sr_distill.options.remarks import remarks_on_options
from sr_distill.train import find_weights

from ..conftest import Objective, small

BALANCE = {"against": "l1", "ratio": 0.25, "after": 0}


def _batches(count=3):
    return [(torch.rand(2, 3, 16, 16), torch.rand(2, 3, 32, 32)) for _ in range(count)]


def _norm(loss, network):
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    return torch.cat([g.flatten() for g in gradients]).norm().item()


def test_the_weight_gives_the_gradient_the_ratio_that_was_asked_for():
    """Against gradients written out here: of everything that has the type, with its weight, summed over the batches."""
    student, teacher = build_model(small("mobile_sr"), 2), build_model(small("edsr"), 2)
    losses = [
        {"type": "l1", "weight": 0.5},
        {"type": "l1", "against": "teacher", "weight": 2.0},
        {"type": "charbonnier", "weight": 7.0},
        {"type": "mse", "balance": BALANCE},
    ]
    distiller, batches = Distiller(student, teacher, losses), _batches()
    own = theirs = 0.0
    for lr, hr in batches:
        with torch.no_grad():
            target = teacher(lr).clamp(0, 1)
        theirs += _norm(0.5 * F.l1_loss(student(lr), hr) + 2.0 * F.l1_loss(student(lr), target), student)
        own += _norm(F.mse_loss(student(lr), hr), student)
    found = distiller.balance(batches)
    assert found == {"mse_sr_hr": pytest.approx(0.25 * theirs / own, rel=1e-3)}
    total, values = distiller(*batches[0])
    weights = (0.5, 2.0, 7.0, found["mse_sr_hr"])
    torch.testing.assert_close(total.detach(), sum(w * value for w, value in zip(weights, values.values())))


def test_a_term_can_be_measured_by_one_other_by_its_name():
    student, teacher = build_model(small("mobile_sr"), 2), build_model(small("edsr"), 2)
    losses = [{"type": "l1"}, {"type": "l1", "against": "teacher"}, {"type": "mse", "balance": BALANCE}]
    found = []
    for against in ("l1_sr_hr", "l1"):
        losses[2] = {"type": "mse", "balance": {**BALANCE, "against": against}}
        torch.manual_seed(4)
        found.append(Distiller(student, teacher, losses).balance(_batches())["mse_sr_hr"])
    assert found[0] != found[1]


def test_a_found_weight_stays_and_moves_nothing():
    student = build_model(small("mobile_sr"), 2)
    objective = Objective([{"type": "l1"}, {"type": "mse", "balance": BALANCE}], student)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    first = [Batch(*pair) for pair in _batches()]
    weights = find_weights(objective.task, {}, first, [1.0, 1.0])
    assert find_weights(objective.task, {}, [Batch(*pair) for pair in _batches()], [1.0, 1.0]) == {}
    assert objective.task.weights_at(0, 10) == [1.0, weights["mse_sr_hr"]]
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert all(p.grad is None for p in student.parameters())


def test_each_student_has_a_weight_of_its_own():
    students = {"student": build_model(small("mobile_sr"), 2), "peers": {"peer_1": build_model(small("compact"), 2)}}
    objective = Objective(
        [{"type": "l1"}, {"type": "mse", "balance": BALANCE}], students["student"], peers=students["peers"]
    )
    batches = [Batch(*pair) for pair in _batches()]
    found = find_weights(objective.task, {}, batches, [1.0] * 4)
    for name, label in (("student", "mse_sr_hr"), ("peer_1", "peer_1_mse_sr_hr")):
        network = objective.task.students[name]
        own = sum(_norm(F.mse_loss(network(b.lr), b.hr), network) for b in batches)
        theirs = sum(_norm(F.l1_loss(network(b.lr), b.hr), network) for b in batches)
        assert found[label] == pytest.approx(0.25 * theirs / own, rel=1e-3)


def test_until_it_is_found_the_term_does_not_count():
    student = build_model(small("mobile_sr"), 2)
    schedule = {"start": 3, "warmup": 2}
    losses = [{"type": "l1"}, {"type": "mse", "balance": {**BALANCE, "after": 4}, "schedule": schedule}]
    task = Objective(losses, student).task
    task.terms[1].found.weight = 10.0
    assert [task.weights_at(step, 20)[1] for step in (0, 3, 6, 7, 8, 19)] == [0, 0, 0, 5, 10, 10]


def test_a_distiller_asks_for_it():
    distiller = Distiller(build_model(small("mobile_sr"), 2), {}, [{"type": "l1"}, {"type": "mse", "balance": BALANCE}])
    with pytest.raises(UserError, match="mse_sr_hr has balance: call distiller.balance"):
        distiller(*_batches(1)[0])


def test_looking_at_batches_leaves_nothing_behind():
    """The next steps train on them: what a term remembers of them would be its own negatives."""
    student, teacher = build_model(small("mobile_sr"), 2), build_model(small("edsr"), 2)
    crd = {"type": "contrastive_representation", "memory": 8, "dimensions": 4, "balance": BALANCE}
    distiller, batches = Distiller(student, teacher, [{"type": "l1"}, crd]).train(), _batches()
    assert distiller.balance(batches)
    remembered = [buffer for name, buffer in distiller.named_buffers() if name.endswith("memory")]
    assert remembered
    assert not any(buffer.any() for buffer in remembered)
    distiller(*batches[0])
    assert all(buffer.any() for buffer in remembered)


def test_a_gradient_of_nothing_is_an_error():
    student = build_model(small("mobile_sr"), 2)
    distiller = Distiller(student, {}, [{"type": "l1"}, {"type": "mse", "balance": BALANCE}])
    lr = torch.rand(2, 3, 16, 16)
    with pytest.raises(UserError, match="mse_sr_hr: its weight cannot be found: the norm of its gradient is 0"):
        distiller.balance([(lr, student(lr).detach())])


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([{"type": "l1"}, {"type": "mse", "weight": 2.0, "balance": BALANCE}], "leave out weight"),
        ([{"type": "l1"}, {"type": "mse", "balance": {"against": "l2"}}], "no term with a weight of its own"),
        ([{"type": "l1", "weight": 0.0}, {"type": "mse", "balance": BALANCE}], "no term with a weight of its own"),
        ([{"type": "mse", "balance": BALANCE, "name": "l1"}], "no term with a weight of its own"),
        ([{"type": "l1"}, {"type": "mse", "balance": {**BALANCE, "ratio": 0}}], "greater than 0"),
        (
            [
                {"type": "l1"},
                {"type": "mse", "balance": BALANCE, "schedule": {"stop": 2}},
            ],
            None,
        ),
        (
            [{"type": "l1"}, {"type": "mse", "balance": {"after": 5}, "schedule": {"stop": 5}}],
            "found at step 5 .*schedule.stop is 5",
        ),
    ],
)
def test_balances_that_cannot_be_are_refused(losses, expected):
    tree = _run(losses)
    if expected is None:
        validate(RunOptions, tree, "test")
        return
    with pytest.raises(UserError, match=expected):
        validate(RunOptions, tree, "test")


def test_a_run_that_ends_before_is_remarked():
    options = validate(RunOptions, _run([{"type": "l1"}, {"type": "mse", "balance": {"after": 9}}]), "test")
    assert any("found at step 9, and the run ends at step 9: it never counts" in r for r in remarks_on_options(options))


def _run(losses):
    data = {"train": [{"hr": "embedded"}]}
    student = {"type": "fsrcnn"}
    return {"name": "x", "scale": 2, "student": student, "data": data, "losses": losses, "train": {"total_steps": 9}}


def test_a_weight_that_is_found_otherwise_now_is_found_anew():
    def distiller(**changes):
        losses = [{"type": "l1"}, {"type": "mse", "balance": BALANCE | changes}]
        return Distiller(build_model(small("mobile_sr"), 2), None, losses)

    first, batches = distiller(), _batches()
    found = first.balance(batches)
    same, other = distiller(), distiller(ratio=0.5)
    for following in (same, other):
        following.load_state_dict(first.state_dict())
    assert same.balance(batches) == {}
    before = first.state_dict() | {key: found["mse_sr_hr"] for key in first.state_dict() if "found" in key}
    older = distiller()
    older.load_state_dict(before)  # the weight alone, as checkpoints had it
    assert older.balance(batches) == {}
    assert other.balance(batches)["mse_sr_hr"] == pytest.approx(2 * found["mse_sr_hr"], rel=1e-3)
