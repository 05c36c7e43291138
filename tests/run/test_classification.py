"""A teacher brings a classifier more than its few labels do, in each of the classic ways of distillation."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
from importlib.util import find_spec

import pytest
import torch
from torch import nn

import sr_distill as sd

from ..conftest import ROOT

pytest.importorskip("sklearn", reason="scikit-learn is not installed (tests/requirements.txt)")
pytestmark = pytest.mark.run

PAGE = (ROOT / "docs/classification.md").read_text()
SEEDS, STEPS = (0,), 250
TUTORIALS = ["kl", "mse", "cosine", "regressor"]


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def script():
    """scripts/classification.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        yield importlib.import_module("classification")


@pytest.fixture(scope="module")
def teacher(script):
    """A teacher of fewer steps."""
    return script.train_teacher(script.load_digits(), script.WHOLE, seed=0, steps=200)


@pytest.fixture(scope="module")
def student(script, teacher):
    """Train a student: ``student("kl", seed)``; with other options of its last loss where they are given."""

    def trained(name, seed=0, steps=STEPS, unlabelled=True, **change):
        variant = script.ALONE if name == "alone" else script.VARIANTS[name]
        if change:
            variant = dataclasses.replace(variant, losses=[*variant.losses[:-1], {**variant.losses[-1], **change}])
        teachers = {script.WHOLE: teacher} if variant.teachers else {}
        return script.train_student(script.load_digits(), variant, teachers, seed, unlabelled, steps)

    return trained


@pytest.fixture(scope="module")
def alone(script, student):
    """Mean accuracy without a teacher."""
    return _mean(script, [student("alone", seed, unlabelled=False) for seed in SEEDS])


def _mean(script, networks):
    return sum(script.load_digits().accuracy(network) for network in networks) / len(networks)


def test_the_teacher_knows_more_than_the_student_alone(script, teacher, alone):
    assert script.load_digits().accuracy(teacher) > 97
    assert 55 < alone < 80


@pytest.mark.parametrize("name", TUTORIALS)
def test_a_student_with_a_teacher_is_better_than_one_without(script, student, alone, name):
    assert _mean(script, [student(name, seed) for seed in SEEDS]) > alone + 5


def _weights(network):
    return nn.utils.parameters_to_vector(network.parameters()).detach()


@pytest.mark.parametrize(
    ("name", "nothing"), [("kl", {"alpha": 0.0}), ("cosine", {"weight": 0.0}), ("regressor", {"weight": 0.0})]
)
def test_a_teacher_without_weight_changes_nothing_and_one_with_more_weight_changes_more(student, name, nothing):
    """And so the difference is the teacher's, and as large as was asked for."""
    few = {"steps": 20, "unlabelled": False}
    plain, idle = _weights(student("alone", **few)), _weights(student(name, **few, **nothing))
    torch.testing.assert_close(idle, plain, rtol=0, atol=0)
    (key,) = nothing
    small, usual = (_weights(student(name, **few, **{key: value})) for value in (1e-4, {"kl": 0.9}.get(name, 30.0)))
    assert 0 < (small - plain).norm() < 0.5 * (usual - plain).norm()


def test_both_conventions_of_alpha_train_the_same_student(student):
    few = {"steps": 20, "unlabelled": False}
    ours, others = student("kl", **few), student("kl", **few, alpha=0.1, alpha_of="hard")
    torch.testing.assert_close(_weights(ours), _weights(others), rtol=1e-3, atol=1e-4)
    assert (_weights(ours) - _weights(student("kl", **few, alpha=0.1))).norm() > 0.1


def test_the_study_runs_goes_on_and_prints_its_table(script, tmp_path, monkeypatch, capsys):
    train = script.train
    monkeypatch.setattr(script, "train", lambda distiller, batches, steps, rate: train(distiller, batches, 2, rate))
    path = tmp_path / "results.json"
    assert script.main(["run", "--seeds", "1", "--on", "validation", "--file", str(path)]) == 0
    first, results = capsys.readouterr().out, json.loads(path.read_text())
    assert len(results) == 1 + 2 * len(script.VARIANTS) + 4
    assert all(list(of_seeds) == ["0"] for of_seeds in results.values())
    assert script.main(["run", "--seeds", "2", "--on", "validation", "--file", str(path), "--variants", "kl"]) == 0
    again = capsys.readouterr().out
    assert "kl, seed 1" in again
    assert "seed 0" in first
    assert "seed 0" not in again
    assert "| soft targets, KL | " in again
    with pytest.raises(sd.UserError, match="give another --file"):
        script.main(["run", "--on", "validation"])


def test_the_mean_of_teachers_is_measured_as_their_mean(script):
    digits = script.load_digits()

    def says(digit, loudly):
        bias = torch.zeros(10)
        bias[digit] = loudly
        return lambda images: bias.expand(len(images), 10)

    networks = [nn.Module() for _ in range(3)]
    for network, forward in zip(networks, (says(3, 1.0), says(3, 1.0), says(5, 5.0))):
        network.forward = forward
    share = (digits.labels[digits.held_out] == 5).double().mean().item() * 100
    assert digits.accuracy(*networks) == pytest.approx(share)


def test_students_see_the_labels_of_few_images_and_none_of_the_held_out(script):
    for held_out in ("test", "validation"):
        digits = script.load_digits(held_out)
        assert not set(digits.pool.tolist()) & set(digits.held_out.tolist())
        assert digits.labels[digits.few(0)].bincount().tolist() == [6] * 10
        assert set(digits.few(0).tolist()) < set(digits.pool.tolist())
    images, labels = next(script._few(digits, 0, True))
    assert len(images) == len(labels) == 124
    assert (labels == script.NO_LABEL).sum() == 64
    assert len(next(script._few(digits, 0, False))[1]) == 60


def test_the_page_shows_what_was_measured(script):
    runs = script.Runs()
    assert runs.table() in PAGE
    assert all(list(of_seeds) == list("01234") for of_seeds in runs.results.values())
    alone = runs.results["alone"]
    for name in script.VARIANTS:
        with_teacher = runs.results[f"{name}_unlabelled"]
        assert all(with_teacher[seed] > alone[seed] for seed in alone)


def _needs(block):
    """The trainer that a block of the page is for."""
    return next((name for name in ("lightning", "fastai") if re.search(rf"^(import|from) {name}", block, re.M)), None)


def test_the_examples_on_the_page_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = [part.split("```")[0] for part in PAGE.split("```python")[1:]]
    net = nn.Linear(3, 4)
    names = {"__name__": "page", "student": net, "teacher": nn.Linear(3, 4), "images": torch.rand(5, 3)}
    names["labels"] = torch.tensor([0, 1, 2, 3, 0])
    for index, block in enumerate(blocks):
        if _needs(block) is None or find_spec(_needs(block)):
            exec(compile(block, f"docs/classification.md block {index}", "exec"), names)
    assert net.weight.grad is not None
    said = dict(re.findall(r"(soft targets|cosine|regressor|teacher|student alone) (0\.\d+)", capsys.readouterr().out))
    accuracy = {name: float(value) for name, value in said.items()}
    assert len(accuracy) == 5
    assert accuracy["teacher"] > 0.96
    assert min(accuracy[name] for name in ("soft targets", "cosine", "regressor")) > accuracy["student alone"] + 0.05
    assert names["callback"] is not None
    assert names["on_maps"] > 0
