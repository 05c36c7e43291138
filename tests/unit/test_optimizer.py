"""Optimizers that see a kernel as a matrix: steps of other people's code, kernels, vectors, and going on."""

from __future__ import annotations

import copy
import io
import json

import pytest
import torch
from torch import nn

from sr_distill.data import luma
from sr_distill.models import build_model
from sr_distill.options import validate
from sr_distill.options.optimisation import OptimizerOptions
from sr_distill.train import make_optimizer
from sr_distill.train.optimizer import SOAP, Muon

from ..conftest import ROOT, small

REFERENCE = json.loads((ROOT / "tests/reference/soap.json").read_text())
MATRIX = ["muon", "soap"]


def _make(module, kind, **change):
    return make_optimizer(validate(OptimizerOptions, {"type": kind, "learning_rate": 0.01, **change}, "test"), module)


def _gradient(shape, step):
    i = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return (torch.sin(1.3 * i + 0.9 * step + 0.2 * torch.cos(0.5 * i * (step + 1))) * torch.cos(0.11 * i)).reshape(
        shape
    )


def _walk(parameter, optimizer, steps, first=0):
    for step in range(first, first + steps):
        parameter.grad = _gradient(parameter.shape, step).to(parameter.dtype)
        optimizer.step()
    return parameter.detach().clone()


@pytest.mark.parametrize("case", REFERENCE["cases"], ids=lambda case: str(case["shape"]))
def test_soap_takes_the_steps_of_a_published_package(case):
    """Of square matrices: of others the first basis has directions in which there is no gradient yet, and any will do."""
    i = torch.arange(torch.Size(case["shape"]).numel(), dtype=torch.float64)
    start = torch.sin(0.7 * i + 0.3).reshape(case["shape"])
    weight = nn.Parameter(start.clone())
    optimizer = SOAP([weight], 0.01, tuple(case["betas"]), 0.0, precondition_every=case["precondition_every"])
    for step, (total, weighted) in enumerate(case["sums"]):
        moved = _walk(weight, optimizer, 1, step) - start
        assert moved.abs().sum().item() == pytest.approx(total, rel=1e-4)
        assert (moved.flatten() * torch.sin(i)).sum().item() == pytest.approx(weighted, rel=1e-4, abs=1e-6)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon to compare with")
@pytest.mark.parametrize("shape", [(6, 9), (9, 4)])
def test_muon_takes_torchs_steps(shape):
    """torch's works in bfloat16, so its steps are coarse."""
    weights = [nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0))) for _ in range(2)]
    own = Muon([weights[0]], 0.01, (0.9, 0.99), 0.1, momentum=0.9)
    theirs = torch.optim.Muon([weights[1]], lr=0.01, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    start = weights[0].detach().clone()
    first, second = (_walk(weight, optimizer, 8) - start for weight, optimizer in zip(weights, (own, theirs)))
    assert (first - second).norm() < 0.02 * second.norm()


@pytest.mark.parametrize("kind", MATRIX)
def test_a_kernel_is_a_matrix_in_any_layout(kind):
    start = torch.randn(6, 4, 3, 3)
    walked = []
    for layout in (torch.contiguous_format, torch.channels_last):
        kernel = nn.Conv2d(4, 6, 3)
        kernel.weight = nn.Parameter(start.clone(memory_format=layout))
        walked.append(_walk(kernel.weight, _make(kernel, kind), 25))
    matrix = nn.Linear(36, 6)
    matrix.weight = nn.Parameter(start.flatten(1).clone())
    walked.append(_walk(matrix.weight, _make(matrix, kind), 25).view(6, 4, 3, 3))
    assert (walked[0] - start).abs().mean() > 0.01
    for other in walked[1:]:
        torch.testing.assert_close(walked[0], other, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("shape", [(7,), (1, 9), (5, 1, 1, 1), (1, 1, 3, 3)])
@pytest.mark.parametrize("kind", MATRIX)
def test_what_is_no_matrix_is_adams(kind, shape):
    weights = [nn.Parameter(torch.ones(shape)) for _ in range(2)]
    module = nn.Module()
    module.weight = weights[0]
    adam = torch.optim.AdamW([weights[1]], lr=0.01, betas=(0.9, 0.99), weight_decay=0.1)
    walked = [_walk(w, o, 6) for w, o in zip(weights, (_make(module, kind, weight_decay=0.1, betas=[0.9, 0.99]), adam))]
    torch.testing.assert_close(*walked)


@pytest.mark.parametrize("kind", MATRIX)
def test_going_on_from_a_saved_state_is_exact(kind):
    start, walked = torch.randn(6, 4, 3, 3), []
    for cut in (False, True):
        kernel = nn.Conv2d(4, 6, 3)
        kernel.weight = nn.Parameter(start.clone())
        optimizer = _make(kernel, kind)
        _walk(kernel.weight, optimizer, 13)
        if cut:
            content = io.BytesIO()
            torch.save(optimizer.state_dict(), content)
            content.seek(0)
            optimizer = _make(kernel, kind)
            optimizer.load_state_dict(torch.load(content, weights_only=True))
        walked.append(_walk(kernel.weight, optimizer, 20, 13))
    assert torch.equal(*walked)


@pytest.mark.parametrize("kind", MATRIX)
def test_a_weight_without_gradient_stays(kind):
    kernel = nn.Conv2d(3, 3, 3)
    optimizer = _make(kernel, kind, weight_decay=0.5)
    before = kernel.weight.detach().clone()
    kernel.bias.grad = torch.ones(3)
    optimizer.step()
    assert torch.equal(kernel.weight, before)


@pytest.mark.parametrize("kind", MATRIX)
def test_a_closure_makes_the_gradients_and_its_loss_is_returned(kind):
    torch.manual_seed(0)
    given, made = nn.Linear(3, 4), nn.Linear(3, 4)
    made.load_state_dict(given.state_dict())
    inputs = torch.rand(5, 3)
    first, second = _make(given, kind), _make(made, kind)
    for _ in range(3):
        first.zero_grad()
        given(inputs).square().sum().backward()
        first.step()

        def closure():
            second.zero_grad()
            loss = made(inputs).square().sum()
            loss.backward()
            return loss

        assert second.step(closure) > 0
    torch.testing.assert_close(made.weight, given.weight, atol=0, rtol=0)


@pytest.mark.parametrize("color", ["y", "rgb"])
@pytest.mark.parametrize("kind", MATRIX)
def test_they_train_a_student(kind, color):
    """On a fixed batch, SOAP faster than Adam; kernels with one input channel and PReLU among the weights."""
    hr = torch.rand(4, 3, 12, 12).repeat_interleave(2, 2).repeat_interleave(2, 3)
    losses = {}
    for name in ("adam", kind):
        torch.manual_seed(0)
        student = build_model(small("mobile_sr", color=color, activation="prelu"), 2).train()
        optimizer = _make(student, name, learning_rate=3e-3)
        for _ in range(60):
            optimizer.zero_grad()
            loss = luma(student(hr[..., ::2, ::2] * 0.8 + 0.1) - hr).square().mean()
            losses.setdefault("first", loss.item())
            loss.backward()
            optimizer.step()
        losses[name] = loss.item()
    assert losses[kind] < 0.9 * losses["first"]
    assert kind == "muon" or losses["soap"] < losses["adam"]


def test_soap_leaves_what_is_not_finite_to_the_check_of_the_losses():
    kernel = nn.Conv2d(3, 4, 3)
    optimizer = _make(kernel, "soap")
    for _ in range(12):
        kernel.weight.grad = torch.full_like(kernel.weight, float("nan"))
        optimizer.step()
    assert kernel.weight.isnan().all()


def test_soap_takes_gradients_of_nothing():
    kernel = nn.Conv2d(3, 4, 3)
    optimizer = _make(kernel, "soap")
    for _ in range(25):
        kernel.weight.grad = torch.zeros_like(kernel.weight)
        optimizer.step()
    assert kernel.weight.isfinite().all()


def test_each_optimizer_has_its_usual_settings():
    usual = {kind: validate(OptimizerOptions, {"type": kind}, "test") for kind in ("adam", "adamw", "muon", "soap")}
    assert {kind: (o.learning_rate, *o.betas) for kind, o in usual.items()} == {
        "adam": (1e-3, 0.9, 0.99),
        "adamw": (1e-3, 0.9, 0.99),
        "muon": (3e-3, 0.9, 0.99),
        "soap": (3e-3, 0.9, 0.95),
    }
    assert validate(OptimizerOptions, {}, "test") == usual["soap"]
    assert validate(OptimizerOptions, {"type": "adam", "learning_rate": 0.5}, "test").learning_rate == 0.5


@pytest.mark.parametrize("kind", MATRIX)
def test_weights_of_one_shape_walk_as_if_they_were_alone(kind):
    """Also where one of them has no gradient for a while, and after going on from a saved state.

    Square matrices of full rank: where eigenvalues are equal, rounding chooses the eigenvectors.
    """
    steps, resting = 23, range(4, 9)

    def walk(indices, cut=None):
        module = nn.ParameterList(
            [
                nn.Parameter(torch.sin(torch.arange(16.0, dtype=torch.float64) + index).view(4, 2, 2, 1))
                for index in indices
            ]
        )
        optimizer = _make(module, kind, weight_decay=0.1)
        for step in range(steps):
            for index, weight in zip(indices, module):
                weight.grad = None if index == 1 and step in resting else _gradient((4, 2, 2, 1), 7 * index + step)
            if step == cut:
                content = io.BytesIO()
                torch.save(optimizer.state_dict(), content)
                content.seek(0)
                before = [weight.detach().clone() for weight in module]
                for _ in range(3):  # what is loaded takes the place of what happened since
                    optimizer.step()
                with torch.no_grad():
                    for weight, value in zip(module, before):
                        weight.copy_(value)
                optimizer.load_state_dict(torch.load(content, weights_only=True))
            optimizer.step()
        return [weight.detach() for weight in module]

    together = walk([0, 1, 2])
    for index in range(3):
        torch.testing.assert_close(together[index], walk([index])[0], atol=1e-7, rtol=1e-6)
    for cut in (3, 6, 15):
        assert all(torch.equal(*pair) for pair in zip(walk([0, 1, 2], cut), together))


@pytest.mark.parametrize("kind", MATRIX)
def test_a_copy_of_an_optimizer_goes_on(kind):
    kernel = nn.Conv2d(3, 4, 3)
    optimizer = _make(kernel, kind)
    _walk(kernel.weight, optimizer, 3)
    copied = copy.deepcopy(optimizer)
    weight = copied.param_groups[0]["params"][0]
    assert torch.equal(_walk(weight, copied, 6, 3), _walk(kernel.weight, optimizer, 6, 3))


def test_soap_goes_on_with_a_moment_that_was_kept_unrotated():
    """As checkpoints had it before."""
    torch.manual_seed(0)
    first, second = (nn.Parameter(torch.ones(6, 4, 3, 3)) for _ in range(2))
    ours, theirs = (_make(nn.ParameterList([weight]), "soap") for weight in (first, second))
    for _ in range(13):
        first.grad = torch.randn_like(first)
        ours.step()
    state = copy.deepcopy(ours.state_dict())
    for kept in state["state"].values():
        kept["moment"] = kept["left_basis"] @ kept.pop("rotated") @ kept["right_basis"].mT
    theirs.load_state_dict(state)
    with torch.no_grad():
        second.copy_(first)
    first.grad = torch.randn_like(first)
    second.grad = first.grad.clone()
    ours.step()
    theirs.step()
    torch.testing.assert_close(second, first)
