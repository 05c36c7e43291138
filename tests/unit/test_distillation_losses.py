"""Distillation losses: values and gradients of the authors' code, and what must hold for all of them."""

from __future__ import annotations

import json
import sys

import pytest
import torch
import torch.nn.functional as F

from sr_distill import losses
from sr_distill.losses import contrastive, frequency, hard_soft, rkd, soft_target, spatial_affinity
from sr_distill.losses.feature_cache import VGG19_LAYERS

from ..conftest import ROOT, vgg_mean

REFERENCE = json.loads((ROOT / "tests/reference/distillation_losses.json").read_text())
FUNCTIONS = {name for name in losses.__all__ if name.islower()} - {"feature_cache", "register_loss"}
ON_MAPS = [
    "activation_boundary",
    "attention_transfer",
    "channel_wise",
    "cosine",
    "dist",
    "fitnet",
    "frequency",
    "logits",
    "mutual",
    "normalised_difference",
    "pkt",
    "rkd",
    "similarity",
    "soft_target",
    "spatial_affinity",
]
PER_SAMPLE = [
    "attention_transfer",
    "channel_wise",
    "cosine",
    "fitnet",
    "frequency",
    "logits",
    "mutual",
    "normalised_difference",
    "soft_target",
    "spatial_affinity",
]


def _student(shape):
    i = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return (1.5 * torch.sin(0.7 * i + 0.3 * torch.sin(1.3 * i) + 0.3)).reshape(shape).requires_grad_()


def _teacher(shape):
    i = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return (1.2 * torch.cos(0.37 * i + 0.5 * torch.cos(0.9 * i) - 0.2)).reshape(shape)


def _negative(shape):
    i = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return (0.9 * torch.sin(0.53 * i + 1)).reshape(shape)


def _same_value_and_gradient(case, value, *inputs):
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(value, inputs)])
    assert value.item() == pytest.approx(case["value"], rel=1e-6)
    assert gradient.abs().sum().item() == pytest.approx(case["gradient_abs_sum"], rel=1e-5)
    weights = torch.sin(torch.arange(len(gradient), dtype=torch.float64))
    assert (gradient * weights).sum().item() == pytest.approx(case["gradient_weighted_sum"], rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("case", REFERENCE["cases"], ids=lambda c: f"{c['loss']}-{c['student_shape']}")
def test_value_and_gradient_of_the_published_code(case):
    student, teacher = _student(case["student_shape"]), _teacher(case["teacher_shape"])
    tensors = [student, teacher]
    if case.get("centred_and_transposed"):
        tensors = [(x - x.mean(2, keepdim=True)).mT for x in tensors]
    if "labels" in case:
        tensors.insert(0, F.cross_entropy(student, torch.tensor(case["labels"])))
    if "target" in case:
        tensors.append(torch.tensor(case["target"]))
    value = getattr(losses, case["loss"])(*tensors, **case["arguments"])
    _same_value_and_gradient(case, value * case.get("factor", 1.0), student)


@pytest.mark.parametrize("case", REFERENCE["contrastive"]["cases"], ids=lambda c: "-".join(c["layers"]))
def test_contrastive_has_value_and_gradient_of_the_published_code(case, monkeypatch):
    def maps(of, count):
        return [of((count, *shape)) for shape in case["map_shapes"]]

    student, teacher = maps(_student, case["batch"]), maps(_teacher, case["batch"])
    negatives = maps(_student if case["negatives_are"] == "student" else _negative, case["negatives"])
    indices = [VGG19_LAYERS[name] for name in case["layers"]]
    # In place of VGG19's maps of three images; which of them is asked for, the value of its first pixel says.
    seen = [dict(zip(indices, of_one)) for of_one in (student, teacher, negatives)]
    monkeypatch.setattr(
        sys.modules[contrastive.__module__], "vgg_maps", lambda image, wanted: seen[int(image.flatten()[0])]
    )
    images = (torch.full((1, 3, 8, 8), float(i), dtype=torch.float64) for i in range(3))
    _same_value_and_gradient(case, contrastive(*images, layers=case["layers"]), *student)


@pytest.mark.parametrize(
    "case", REFERENCE["contrastive_representation"]["cases"], ids=lambda c: str(c["student_shape"])
)
def test_contrastive_representation_has_value_and_gradient_of_the_published_code(case):
    s0, t0 = _student(case["student_shape"]), _teacher(case["teacher_shape"])
    negatives = F.normalize(_negative(case["negatives_shape"]), dim=-1)
    embeddings = (F.normalize(x, dim=-1) for x in (s0, t0))
    value = losses.contrastive_representation(*embeddings, *negatives, **case["arguments"])
    _same_value_and_gradient(case, value, s0)


def test_every_loss_has_a_reference_or_a_test_of_its_own():
    covered = {case["loss"] for case in REFERENCE["cases"]}
    covered |= {"contrastive", "contrastive_representation", "cosine", "normalised_difference"}  # here
    covered |= {"charbonnier", "l1", "lpips", "mse", "perceptual"}  # test_losses.py
    assert not FUNCTIONS - covered, "compare value and gradient with somebody else's, and add the name above"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ON_MAPS)
def test_gradients_are_finite_and_sane(name, dtype):
    some, zero = torch.randn(4, 5, 6, 7).to(dtype), torch.zeros(4, 5, 6, 7, dtype=dtype)
    twins = torch.cat([some[:2], some[:2]])
    pairs = {
        "zero": (zero, some),
        "both zero": (zero, zero),
        "same": (some, some),
        "large": (some * 1e4, some * -1e4),
        "twins": (twins, some),
    }
    for what, (student, teacher) in pairs.items():
        student = student.clone().requires_grad_()
        value = getattr(losses, name)(student, teacher)
        gradient = torch.autograd.grad(value, student)[0]
        assert value.isfinite(), what
        assert gradient.isfinite().all(), what
        assert gradient.abs().max() < (1e8 if name == "dist" else 1e6), (
            what
        )  # the authors' eps beside a product of norms


@pytest.mark.parametrize("name", [name for name in ON_MAPS if name != "activation_boundary"])
def test_identical_maps_cost_nothing(name):
    x = torch.randn(4, 5, 6, 7, dtype=torch.float64)
    assert getattr(losses, name)(x, x.clone()).item() == pytest.approx(0, abs=1e-6 if name == "dist" else 1e-9)


@pytest.mark.parametrize("name", PER_SAMPLE)
def test_a_batch_costs_the_mean_of_its_samples(name):
    student, teacher = torch.randn(3, 5, 6, 7, dtype=torch.float64), torch.randn(3, 5, 6, 7, dtype=torch.float64)
    loss = getattr(losses, name)
    single = torch.stack([loss(s[None], t[None]) for s, t in zip(student, teacher)]).mean()
    torch.testing.assert_close(loss(student, teacher), single)


@pytest.mark.parametrize("name", ["similarity", "pkt", "rkd"])
def test_relations_need_several_samples(name):
    least = 3 if name == "rkd" else 2
    assert getattr(losses, name)(torch.randn(least, 4), torch.randn(least, 4)).isfinite()
    with pytest.raises(ValueError, match=f"^{name} compares relations .* at least {least} of them, got {least - 1}"):
        getattr(losses, name)(torch.randn(least - 1, 4), torch.randn(least - 1, 4))
    with pytest.raises(ValueError, match="relations between samples and needs at least"):
        getattr(losses, name)(torch.randn(1, 4), torch.randn(1, 4))
    with pytest.raises(ValueError, match="the student has 4 samples and the teacher 3"):
        getattr(losses, name)(torch.randn(4, 4), torch.randn(3, 4))


@pytest.mark.parametrize(
    "name",
    ["fitnet", "logits", "soft_target", "channel_wise", "activation_boundary", "frequency", "normalised_difference"],
)
def test_different_shapes_are_named(name):
    with pytest.raises(
        ValueError,
        match=rf"^{name} compares value by value, but the student has \(2, 3, 4, 5\) and the teacher \(2, 6, 4, 5\): an adapter",
    ):
        getattr(losses, name)(torch.randn(2, 3, 4, 5), torch.randn(2, 6, 4, 5))


@pytest.mark.parametrize("name", ["attention_transfer", "spatial_affinity"])
def test_maps_of_any_two_sizes(name):
    student, teacher = torch.randn(2, 3, 8, 5), torch.randn(2, 7, 4, 10)
    pooled = F.adaptive_avg_pool2d(student, (4, 5)), F.adaptive_avg_pool2d(teacher, (4, 5))
    loss = getattr(losses, name)
    torch.testing.assert_close(loss(student, teacher), loss(*pooled))


def test_soft_target_over_channels_of_a_map_is_a_mean_over_positions():
    student, teacher = torch.randn(2, 5, 3, 4), torch.randn(2, 5, 3, 4)
    flat = soft_target(student.permute(0, 2, 3, 1).reshape(-1, 5), teacher.permute(0, 2, 3, 1).reshape(-1, 5))
    torch.testing.assert_close(soft_target(student, teacher), flat)
    torch.testing.assert_close(
        soft_target(student, teacher, dim=-1), soft_target(student.transpose(1, 3), teacher.transpose(1, 3))
    )


def test_hard_soft_weighs_both():
    student, teacher, task = torch.randn(4, 6), torch.randn(4, 6), torch.tensor(2.0)
    kl = F.kl_div(F.log_softmax(student / 3, 1), F.softmax(teacher / 3, 1), reduction="batchmean") * 9
    torch.testing.assert_close(hard_soft(task, student, teacher), 0.7 * kl + 0.3 * task)
    mse = F.mse_loss(F.softmax(student / 2, 1), F.softmax(teacher / 2, 1))
    torch.testing.assert_close(hard_soft(task, student, teacher, 0.4, 2.0, "mse"), 0.4 * mse + 0.6 * task)
    with pytest.raises(ValueError, match="allowed: kl, mse"):
        hard_soft(task, student, teacher, kind="l1")


def test_a_neuron_at_zero_is_off():
    """The boundary is between t <= 0 and t > 0: at zero the student is pushed down alone."""
    student = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    teacher = torch.tensor([[0.0, 1e-9]], dtype=torch.float64)
    assert losses.activation_boundary(student, teacher).item() == pytest.approx(3 / 1000 * (1.5**2 + 0.5**2))


def test_narrow_maps_keep_a_row_of_positions():
    tall = torch.randn(1, 3, 1000, 1), torch.randn(1, 5, 1000, 1)
    pooled = tuple(F.adaptive_avg_pool2d(x, (100, 1)) for x in tall)
    torch.testing.assert_close(spatial_affinity(*tall, max_positions=10), spatial_affinity(*pooled, max_positions=100))


def test_large_batches_and_maps_are_bounded():
    student, teacher = torch.randn(300, 4), torch.randn(300, 6)
    picked = torch.linspace(0, 299, 128).round().long()
    torch.testing.assert_close(rkd(student, teacher), rkd(student[picked], teacher[picked]))
    big = torch.randn(1, 3, 100, 50), torch.randn(1, 5, 100, 50)
    small = tuple(F.adaptive_avg_pool2d(x, (67, 33)) for x in big)
    torch.testing.assert_close(spatial_affinity(*big), spatial_affinity(*small))


def test_frequency_equals_numpy_by_hand():
    import numpy as np

    student, teacher = torch.randn(2, 3, 6, 8, dtype=torch.float64), torch.randn(2, 3, 6, 8, dtype=torch.float64)
    s, t = (np.fft.rfft2(x.numpy(), norm="ortho") for x in (student, teacher))
    turn = np.angle(s) - np.angle(t)
    turn = np.abs((turn + np.pi) % (2 * np.pi) - np.pi)
    amplitude = np.abs(np.abs(s) - np.abs(t)).mean()
    assert frequency(student, teacher).item() == pytest.approx(0.5 * amplitude + 0.5 * turn.mean())
    assert frequency(student, teacher, amplitude=1.0, phase=0.0).item() == pytest.approx(amplitude)
    assert torch.autograd.gradcheck(frequency, (student[:, :1].clone().requires_grad_(), teacher[:, :1]))


def test_contrastive_equals_the_formula_on_torchvision_features(random_backbones):
    vgg = random_backbones["vgg19"].features.eval()
    for layer in vgg:
        layer.inplace = False
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    sr, teacher = torch.rand(2, 3, 32, 32, requires_grad=True), torch.rand(2, 3, 32, 32)
    negatives = torch.rand(3, 3, 32, 32)
    expected = 0.0
    for name, weight in {
        "relu1_1": 1 / 32,
        "relu2_1": 1 / 16,
        "relu3_1": 1 / 8,
        "relu4_1": 1 / 4,
        "relu5_1": 1.0,
    }.items():
        size = vgg_mean(vgg, VGG19_LAYERS[name])
        a, b, n = (vgg[: VGG19_LAYERS[name] + 1]((x - mean) / std) / size for x in (sr, teacher, negatives))
        far = sum((n[k] - a).abs() for k in range(3)).mean()
        expected = expected + weight * (a - b.detach()).abs().mean() / (far + 1e-7)
    got = contrastive(sr, teacher, negatives)
    torch.testing.assert_close(got, expected)
    gradients = torch.autograd.grad(got, sr)[0], torch.autograd.grad(expected, sr)[0]
    # A difference near 0 may have the other sign, which is a jump of the gradient.
    assert (gradients[0] - gradients[1]).norm() < 0.1 * gradients[1].norm()


def test_the_page_of_losses_lists_every_one():
    page = (ROOT / "docs/losses.md").read_text()
    rows = {line.split("`")[1] for line in page.split("\n## ")[0].splitlines() if line.startswith("| `")}
    assert rows == set(losses.LOSSES)
    assert all(f"`{name}`" in page for name in FUNCTIONS)


@pytest.mark.parametrize("name", ["soft_target", "channel_wise", "hard_soft", "dist", "decoupled"])
def test_the_factor_t_squared_can_be_left_out(name):
    shape = (2, 5) if name == "decoupled" else (2, 5, 3, 3)
    tensors = [torch.randn(shape), torch.randn(shape)]
    if name == "hard_soft":
        tensors.insert(0, torch.zeros(()))
    if name == "decoupled":
        tensors.append(torch.tensor([0, 3]))
    with_it, without = (getattr(losses, name)(*tensors, temperature=3.0, t_squared=t) for t in (True, False))
    torch.testing.assert_close(with_it, 9 * without)


def test_hard_soft_by_either_convention():
    student, teacher, hard = torch.randn(4, 5), torch.randn(4, 5), torch.tensor(2.0)
    ours = hard_soft(hard, student, teacher, alpha=0.3)
    torch.testing.assert_close(hard_soft(hard, student, teacher, alpha=0.7, alpha_of="hard"), ours)
    torch.testing.assert_close(ours, 0.3 * soft_target(student, teacher, 3.0) + 0.7 * hard)
    squared = hard_soft(hard, student, teacher, kind="mse", alpha=1.0)
    torch.testing.assert_close(hard_soft(hard, student, teacher, kind="mse", alpha=1.0, t_squared=True), 9 * squared)
    with pytest.raises(ValueError, match="alpha_of is 'both'"):
        hard_soft(hard, student, teacher, alpha_of="both")


def test_decoupled_at_its_own_factors_is_the_soft_target():
    """KL splits into the target part and the others, whose share is the teacher's probability of them (Zhao et al., equation 6)."""
    student, teacher = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    rest = 1 - F.softmax(teacher / 2, 1).gather(1, labels[:, None])[:, 0]
    parts = [
        [losses.decoupled(student[n : n + 1], teacher[n : n + 1], labels[n : n + 1], a, b, 2.0) for n in range(6)]
        for a, b in ((1.0, 0.0), (0.0, 1.0))
    ]
    together = (torch.stack(parts[0]) + rest * torch.stack(parts[1])).mean()
    torch.testing.assert_close(together, soft_target(student, teacher, 2.0))


def test_decoupled_and_dist_stay_finite_at_large_logits():
    student = (1e4 * torch.randn(4, 6)).requires_grad_()
    teacher = -1e4 * torch.randn(4, 6)
    for value in (losses.decoupled(student, teacher, torch.tensor([0, 1, 2, 3])), losses.dist(student, teacher)):
        assert value.isfinite()
        assert torch.autograd.grad(value, student)[0].isfinite().all()


def test_cosine_is_pytorchs():
    student, teacher = _student([3, 4, 5]), _teacher([3, 4, 5])
    expected = F.cosine_embedding_loss(student.flatten(1), teacher.flatten(1), torch.ones(3))
    got = losses.cosine(student, teacher)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(*(torch.autograd.grad(x, student)[0] for x in (got, expected)))
