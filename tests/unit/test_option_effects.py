"""No option is ignored in silence: changing it changes something, or is refused."""

from __future__ import annotations

from typing import Literal, get_args, get_origin

import pytest
import torch

from sr_distill.contracts import Batch, Prediction
from sr_distill.errors import UserError
from sr_distill.features import choose_pairs
from sr_distill.features.adapters import Adapter
from sr_distill.losses import LOSSES, LossInputs
from sr_distill.models import ARCHITECTURES, build_model
from sr_distill.options import ArchitectureOptions, LossOptions, validate
from sr_distill.options.losses import TermOptions, WeightSchedule
from sr_distill.options.optimisation import OptimizerOptions, ScheduleOptions
from sr_distill.options.sections import FeatureOptions
from sr_distill.train import make_optimizer
from sr_distill.train.schedule import learning_rate_at, weight_at

from ..conftest import IMAGE_PAIR, SMALL, Objective, architecture, images_as_maps, small

# Values for fields whose other values cannot be guessed, or have an effect only where they are small.
OTHER = {
    "betas": [0.5, 0.6],
    "base_window": 4,
    "clip_grad_norm": 1e-3,
    "depths": [1],
    "embed_dim": 16,
    "layers": {"relu1_1": 1.0},
    "max_positions": 4,
    "max_samples": 3,
    "milestones": [2],
    "mlp_ratio": 1.0,
    "num_feat": 40,
    "network": "mobile_sr_tiny_x4",
    "num_heads": [4],
    "num_mid": 4,
    "num_shrink": 4,
    "over": "positions",
    "patch": 4,
    "precondition_every": 1,
    "pool": 1,
    "res_scale": 0.5,
    "stop": 5,
    "t_squared": False,
    "task": "charbonnier",
    "windows": [8, 8, 16, 16],
}
# What must be set along with a field for it to have an effect.
WITH = {
    "adapter": {},
    "decay": {"type": "wsd"},
    "gamma": {"type": "multistep", "milestones": [2]},
    "milestones": {"type": "multistep", "milestones": [4]},
    "patch": {"samples": "patches"},
    "paths": {"paths": 1},  # two pairs have two paths
}
WITH_IN = {
    (LOSSES["channel_wise"], "t_squared"): {"temperature": 2.0},
    (LOSSES["dist"], "gamma"): {},
    (LOSSES["dist"], "t_squared"): {"temperature": 2.0},
    (WeightSchedule, "decay"): {"decay_to": 0.5},
}


def _another(name, field, base):
    """Another value of a field than the one in ``base``, or than its default."""
    annotation, now = field.annotation, base.get(name, field.get_default())
    if get_origin(annotation) is Literal:
        return next((value for value in get_args(annotation) if value != now), None)
    if name in OTHER:
        return OTHER[name]
    if isinstance(now, bool):
        return not now
    if isinstance(now, int):
        return now + 1
    if isinstance(now, float):
        return now * 0.5 or 0.5
    raise AssertionError(f"give a value for {name} in OTHER")


def _differ(cls, name, base, observe, kind=None):
    """Whether a changed field changes what is observed; an unchanged one must not."""
    base = {**base, **WITH_IN.get((cls, name), WITH.get(name, {}))}
    other = _another(name, cls.model_fields[name], base)
    if other is None:  # a field with one possible value
        return
    first, again = (observe(validate(kind or cls, base, "test")) for _ in range(2))
    assert _same(first, again), f"{cls.__name__}: not repeatable"
    try:
        changed = observe(validate(kind or cls, base | {name: other}, "test"))
    except UserError:
        return  # refused
    assert not _same(first, changed), f"{cls.__name__}.{name} = {other!r} changes nothing"


def _same(first, second):
    if isinstance(first, torch.Tensor):
        return first.shape == second.shape and torch.equal(first, second)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(_same, first, second))
    return first == second


FIELDS = [(cls, name) for cls in LOSSES.values() for name in cls.model_fields if name not in TermOptions.model_fields]


@pytest.mark.parametrize(("cls", "name"), FIELDS, ids=lambda x: x if isinstance(x, str) else x.__name__)
def test_losses(random_backbones, cls, name):
    kind = get_args(cls.model_fields["type"].annotation)[0]
    images = [torch.randn(6, 3, side, side) for side in (16, 32, 32)]
    batch = Batch(*(x.sigmoid() for x in images[:2]))

    def observe(options):
        torch.manual_seed(3)
        if kind != "fcfd":
            sr, target = images[1].sigmoid(), images[2].sigmoid()
            maps = [images_as_maps(sr, target)] * (2 if kind == "contrastive_representation" else 1)
            inputs = LossInputs(batch.lr, batch.hr, Prediction(sr), [target], maps, lambda image: image)
            module = options.build([IMAGE_PAIR] * len(maps), 0)
            module(inputs)  # some remember what was there before
            return module(inputs)
        student, teacher = (build_model(small(n), 2) for n in ("mobile_sr", "edsr"))
        return Objective([options.model_dump()], student, teacher, count=2)(batch)[0].detach()

    _differ(cls, name, {"type": kind}, observe, LossOptions)


@pytest.mark.parametrize("on", ["sr", "features", "decoded", "projected"])
@pytest.mark.parametrize("name", LOSSES)
def test_what_is_compared(random_backbones, name, on):
    """Each loss either takes ``on`` and looks at that, or refuses it."""
    if on not in get_args(LOSSES[name].model_fields["on"].annotation):
        with pytest.raises(UserError, match=f"on: got '{on}'.* Allowed: "):
            validate(LossOptions, {"type": name, "on": on}, "test")
        return
    objective = Objective(
        [{"type": name, "on": on, "against": "teacher"}],
        build_model(small("mobile_sr"), 2),
        build_model(small("edsr"), 2),
        count=1,
    )
    needs = objective.task.terms[0].needs
    assert needs["teacher"].sr == (on == "sr")
    assert bool(needs["teacher"].paths) == (on != "sr")
    assert needs["teacher"].replay == (on == "decoded" or name == "fcfd")


@pytest.mark.parametrize(
    ("change", "observe"),
    [
        ({"weight": 0.5}, lambda task: task.weights_at(0, 10)),
        ({"schedule": {"warmup": 2}}, lambda task: task.weights_at(0, 10)),
        ({"name": "x"}, lambda task: task.labels),
        ({"against": "hr"}, lambda task: task.terms[0].needs),
        ({"teacher": "b"}, lambda task: task.terms[0].needs),
        ({"student": "peer_1"}, lambda task: task.labels),
    ],
)
def test_terms(change, observe):
    def task(**change):
        students = {"student": build_model(small("mobile_sr"), 2), "peer_1": build_model(small("ecbsr"), 2)}
        teachers = {name: build_model(small("edsr"), 2) for name in "ab"}
        loss = {"type": "l1", "against": "teacher", **change}
        return Objective([loss], students["student"], teachers, peers={"peer_1": students["peer_1"]}).task

    assert observe(task(**change)) != observe(task())
    assert {"type", "on", *change} <= set(TermOptions.model_fields)


NETWORKS = [(name, field) for name, cls in ARCHITECTURES.items() for field in cls.model_fields if field != "type"]


@pytest.mark.parametrize(("network", "field"), NETWORKS)
def test_networks(network, field):
    image = torch.rand(1, 3, 24, 24)

    def observe(options):
        torch.manual_seed(0)
        model = build_model(options, 4 if network == "rrdbnet" else 2).eval()
        with torch.no_grad():
            return [model(image), [list(p.shape) for p in model.parameters()]]

    _differ(ARCHITECTURES[network], field, {"type": network, **SMALL.get(network, {})}, observe, ArchitectureOptions)


@pytest.mark.parametrize("field", ScheduleOptions.model_fields)
def test_the_learning_rate(field):
    _differ(ScheduleOptions, field, {}, lambda s: [learning_rate_at(step, 1.0, 20, s) for step in range(20)])


@pytest.mark.parametrize("field", WeightSchedule.model_fields)
def test_the_weight_of_a_term(field):
    def observe(schedule):
        term = validate(LossOptions, {"type": "l1", "schedule": schedule.model_dump()}, "test")
        return [weight_at(step, term, 20) for step in range(20)]

    base = {"decay_to": 0.25} if field != "decay_to" else {"start": 2}
    _differ(WeightSchedule, field, base | ({"warmup": 2} if field == "start" else {}), observe)


@pytest.mark.parametrize("field", set(OptimizerOptions.model_fields) - {"clip_grad_norm"})  # tests/run/test_golden.py
def test_the_optimizer(field):
    def observe(options):
        torch.manual_seed(0)
        net = torch.nn.Linear(3, 3)
        optimizer = make_optimizer(options, net)
        for step in range(3):
            optimizer.zero_grad()
            net(torch.full((1, 3), float(step))).square().sum().backward()
            optimizer.step()
        return net.weight.detach().clone()

    base = {"weight_decay": 0.1} if field == "type" else {"weight_decay": 0.0}
    _differ(OptimizerOptions, field, base, observe)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("count", 1),
        ("adapter", "conv3x3"),
        ("normalise", "teacher"),
        ("pairs", [{"student": "body.1", "teacher": "body.0"}]),
    ],
)
def test_features(field, value):
    student = build_model(architecture(type="mobile_sr", num_feat=8, num_block=3), 2)
    teacher = build_model(architecture(type="edsr", num_feat=8, num_block=4), 2)

    def observe(**change):
        pairs = choose_pairs(student, teacher, validate(FeatureOptions, change, "test"))
        return [(str(pair), [p.shape for p in Adapter(pair).state_dict().values()]) for pair in pairs]

    assert observe() != observe(**{field: value})
    named = {"pairs": [{"student": "body.1", "teacher": "body.0"}]}
    assert field in ("count", "normalise") or observe(**named) != observe(**named | {"adapter": "conv3x3"})
    assert set(FeatureOptions.model_fields) == {"count", "adapter", "normalise", "pairs"}
