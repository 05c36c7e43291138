"""Several teachers, and several students: what is compared with what."""

from __future__ import annotations

import pickle

import pytest
import torch
import torch.nn.functional as F

from sr_distill import Distiller
from sr_distill.contracts import Batch, Prediction
from sr_distill.errors import UserError
from sr_distill.features import Taps, choose_pairs, lpips_network, vgg19_features
from sr_distill.losses import mutual
from sr_distill.models import build_model
from sr_distill.options import RunOptions, validate
from sr_distill.options.sections import FeatureOptions

from ..conftest import Objective, architecture, small


def _images(*shape):
    return torch.rand(2, 3, *shape)


def test_the_mean_of_several_teachers_is_weighted_and_each_can_have_its_own_term():
    student = build_model(small("mobile_sr"), 2)
    losses = [{"type": "l1", "against": "teacher"}, {"type": "logits", "against": "teacher", "teacher": "b"}]
    teachers = {name: build_model(small("edsr"), 2) for name in "ab"}
    task = Objective(losses, student, teachers, weights={"a": 1.0, "b": 3.0}).task
    lr, hr, a, b = _images(8, 8), _images(16, 16), _images(16, 16), _images(16, 16)
    total, values = task(Batch(lr, hr), {"a": Prediction(a), "b": Prediction(b)})
    sr = student(lr)
    assert list(values) == ["l1_sr_teacher", "logits_sr_teacher_b"]
    torch.testing.assert_close(total, F.l1_loss(sr, 0.25 * a + 0.75 * b) + F.mse_loss(sr, b))


def test_features_of_each_of_two_teachers():
    student = build_model(small("mobile_sr"), 2)
    teachers = {
        "keys": build_model(small("edsr"), 2),  # the name of a method of nn.ModuleDict
        "b": build_model(small("rlfn"), 2),
    }
    losses = [
        {"type": "l1"},
        {"type": "fitnet", "teacher": "keys", "weight": 0.5},
        {"type": "fitnet", "teacher": "b"},
        {"type": "similarity", "teacher": "b"},
    ]
    distiller = Distiller(student, teachers, losses, count=1)
    lr, hr = _images(16, 16), _images(32, 32)
    total, values = distiller(lr, hr)
    assert list(values) == ["l1_sr_hr", "fitnet_features_keys", "fitnet_features_b", "similarity_features_b"]
    total.backward()
    assert all(p.grad is not None for p in distiller.parameters())
    assert all(p.grad is None for teacher in teachers.values() for p in teacher.parameters())


@pytest.mark.parametrize(
    ("losses", "teacher_weights", "expected"),
    [
        ([{"type": "fitnet"}], None, r"say whose features, as in teacher: a \(teachers: a, b\)"),
        ([{"type": "fitnet", "teacher": "c"}], None, "there is no teacher 'c'.* Teachers: a, b"),
        ([{"type": "l1", "teacher": "a"}], None, "names a teacher, but does not compare with it"),
        ([{"type": "l1", "against": "peers"}], None, "terms against peers need peers"),
        ([{"type": "l1"}], {"a": 1.0}, "give one weight for each"),
    ],
)
def test_mistakes_with_several_teachers_are_named(losses, teacher_weights, expected):
    teachers = {name: build_model(small("edsr"), 2) for name in "ab"}
    with pytest.raises(UserError, match=expected):
        Distiller(build_model(small("mobile_sr"), 2), teachers, losses, teacher_weights=teacher_weights)


BASE = {
    "name": "run",
    "scale": 2,
    "student": {"type": "mobile_sr"},
    "data": {"train": [{"hr": "embedded"}]},
    "losses": [{"type": "l1"}, {"type": "l1", "against": "teacher"}],
    "train": {"total_steps": 1},
}
TEACHERS = [{"name": "a", "model": "a.pth"}, {"name": "b", "model": "b.pth", "weight": 2}]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, "compares with the teacher, but there is no teacher"),
        ({"teachers": TEACHERS, "teacher": {"model": "c"}}, "put them all into teachers"),
        ({"teachers": [TEACHERS[0]] * 2}, "several teachers are called a"),
        ({"teachers": [{"name": "a b", "model": "a"}]}, "teachers.0.name"),
        (
            {"teachers": TEACHERS, "losses": [{"type": "l1", "against": "teacher", "teacher": "a"}]},
            "no loss uses the teacher b",
        ),
        ({"teachers": TEACHERS, "losses": [{"type": "fitnet"}]}, "say whose features"),
        ({"teacher": {"model": "c"}, "losses": [{"type": "l1"}]}, "there is a teacher, but no loss uses it"),
        ({"losses": [{"type": "l1", "against": "peers"}]}, "compares with the peers, but there are none"),
        ({"losses": [{"type": "l1"}], "peers": [{"type": "fsrcnn"}]}, "no loss compares with them"),
        (
            {"losses": [{"type": "l1", "on": "decoded", "against": "peers"}]},
            "on: decoded needs a teacher that does not change",
        ),
        ({"losses": [{"type": "fcfd", "against": "peers"}]}, "against"),
        (
            {"losses": [{"type": "lpips", "on": "features"}]},
            r"losses.0.on: got 'features'.* Allowed: sr, decoded, projected",
        ),
        (
            {"losses": [{"type": "l1", "on": "decoded", "against": "hr"}]},
            "feature maps are compared with the teacher's",
        ),
        (
            {"losses": [{"type": "l1", "student": "peer_1"}]},
            "loss l1_sr_hr: there is no student 'peer_1'. Students: student",
        ),
        (
            {
                "peers": [{"type": "fsrcnn"}],
                "losses": [{"type": "l1", "against": "peers", "student": "student"}],
            },
            "no loss has a weight in step 0 for peer_1",
        ),
        (
            {"losses": [{"type": "l1", "schedule": {"stop": 2}}], "train": {"total_steps": 5}},
            "no loss has a weight in step 2 for student",
        ),
        (
            {"losses": [{"type": "l1"}], "features": {"count": 1}},
            "features has no effect: no loss looks at feature maps",
        ),
        (
            {"losses": [{"type": "fitnet"}], "teacher": {"model": "c", "cache": False, "self_ensemble": True}},
            "cache and self_ensemble of the teacher 'teacher' has no effect",
        ),
        ({"losses": [{"type": "l1", "name": "total"}]}, "cannot be called total, which is something else in the log"),
        ({"losses": [{"type": "l1"}, {"type": "l1", "student": "student"}]}, "several losses are called l1_sr_hr"),
        (
            {"teacher": {"model": "c"}, "losses": [{"type": "pkt"}], "features": {"adapter": "conv3x3"}},
            "features.adapter has no effect: no loss on features needs an adapter",
        ),
        (
            {
                "teachers": [TEACHERS[0] | {"features": {"count": 1}}],
                "losses": [{"type": "pkt"}],
                "features": {"count": 2},
            },
            "features has no effect: .* each teacher has features of its own",
        ),
        (
            {
                "teachers": [TEACHERS[0] | {"features": {"adapter": "conv3x3"}}, TEACHERS[1]],
                "losses": [{"type": "pkt", "teacher": "a"}, {"type": "fitnet", "teacher": "b"}],
            },
            "features.adapter of the teacher 'a' has no effect",
        ),
        (
            {
                "teachers": [TEACHERS[0] | {"features": {"normalise": "teacher"}}],
                "losses": [{"type": "attention_transfer"}],
            },
            "features.normalise of the teacher 'a' has no effect",
        ),
        (
            {
                "teachers": [TEACHERS[0] | {"features": {"count": 1}}, TEACHERS[1]],
                "losses": [{"type": "fitnet", "teacher": "a"}, {"type": "pkt", "teacher": "b"}],
                "features": {"adapter": "conv3x3"},
            },
            "features.adapter has no effect: no loss on features needs an adapter",
        ),
        (
            {"teacher": {"model": "c"}, "losses": [{"type": "hard_soft", "alpha": 1, "alpha_of": "hard"}]},
            "the soft loss has no share",
        ),
        (
            {"teacher": {"model": "c"}, "losses": [{"type": "hard_soft", "alpha": 1, "task": "mse"}]},
            "task has no share",
        ),
        (
            {"teacher": {"model": "c"}, "losses": [{"type": "dist", "beta": 0, "gamma": 0}]},
            "nothing is compared with beta: 0 and gamma: 0",
        ),
        (
            {"teachers": [TEACHERS[1]], "losses": [{"type": "l1", "against": "teacher"}]},
            "weight of the teacher 'b' has no effect",
        ),
        ({"losses": [{"type": "l1", "schedule": {"warmup": 1}}]}, "this schedule changes nothing"),
        ({"losses": [{"type": "frequency", "amplitude": 0, "phase": 0}]}, "both parts of frequency have factor 0"),
        (
            {"teacher": {"model": "c"}, "losses": [{"type": "rkd", "distance_weight": 0, "angle_weight": 0}]},
            "both parts of rkd",
        ),
        ({"losses": [{"type": "perceptual", "layers": {"conv1_1": 0.0}}]}, "losses.0.layers.conv1_1"),
        ({"validation": {"sets": ["embedded"], "metrics": ["psnr_y", "psnr_y"]}}, "psnr_y is there more than once"),
        (
            {"teachers": TEACHERS, "losses": [{"type": "l1", "against": "teacher", "teacher": n} for n in "ab"]},
            "weight of the teacher 'b' has no effect",
        ),
        (
            {
                "peers": [{"type": "fsrcnn"}],
                "losses": [{"type": "fitnet", "against": "peers"}],
                "features": {"pairs": [{"student": "a", "teacher": "b"}]},
            },
            "features.pairs must be auto",
        ),
        (
            {"losses": [{"type": "fcfd", "appearance": 0, "path_maps": 0, "path_outputs": 0}]},
            "every part of fcfd has factor 0",
        ),
    ],
)
def test_options_that_do_not_go_together(change, expected):
    with pytest.raises(UserError, match=expected):
        validate(RunOptions, BASE | change, "test")


def test_options_of_several_teachers():
    own = {"pairs": "auto", "count": 1, "adapter": "conv3x3"}
    teachers = [TEACHERS[0], TEACHERS[1] | {"features": own}]
    losses = [{"type": "l1", "against": "teacher"}, {"type": "fitnet", "teacher": "b"}]
    options = validate(RunOptions, BASE | {"teachers": teachers, "losses": losses}, "test")
    assert options.teacher_weights == {"a": 1.0, "b": 2.0}
    assert options.features_of("a") == options.features
    assert options.features_of("b").adapter == "conv3x3"
    assert list(options.all_students) == ["student"]


def _mutual(*losses, students=("mobile_sr", "fsrcnn", "ecbsr"), **features):
    networks = [build_model(small(name, color="rgb"), 2) for name in students]
    peers = {f"peer_{n}": network for n, network in enumerate(networks[1:], start=1)}
    return {"student": networks[0], **peers}, Objective(losses, networks[0], peers=peers, **features)


def test_mutual_learning_is_each_ones_own_loss_with_the_others_fixed():
    students, objective = _mutual({"type": "l1"}, {"type": "logits", "against": "peers", "weight": 0.5})
    assert objective.task.labels == [
        f"{prefix}{label}" for prefix in ("", "peer_1_", "peer_2_") for label in ("l1_sr_hr", "logits_sr_peers")
    ]
    lr, hr = _images(8, 8), _images(16, 16)
    total, values = objective(Batch(lr, hr))
    assert list(values) == objective.task.labels
    outputs = {name: student(lr) for name, student in students.items()}
    by_hand = 0
    for name, sr in outputs.items():
        others = [outputs[other].detach().clamp(0, 1) for other in outputs if other != name]
        by_hand = by_hand + F.l1_loss(sr, hr) + 0.5 * sum(F.mse_loss(sr, other) for other in others) / 2
    torch.testing.assert_close(total, by_hand)
    weights = list(objective.task.parameters())
    for got, expected in zip(torch.autograd.grad(total, weights), torch.autograd.grad(by_hand, weights)):
        torch.testing.assert_close(got, expected, atol=1e-7, rtol=1e-4)


def test_each_student_may_have_terms_of_its_own():
    students, objective = _mutual(
        {"type": "l1"},
        {"type": "charbonnier", "student": "peer_1"},
        {"type": "logits", "against": "peers", "student": "student"},
        students=("mobile_sr", "ecbsr"),
    )
    batch = Batch(_images(8, 8), _images(16, 16))
    total, values = objective(batch)
    assert list(values) == ["l1_sr_hr", "logits_sr_peers", "peer_1_l1_sr_hr", "peer_1_charbonnier_sr_hr"]
    torch.testing.assert_close(total.detach(), sum(values.values()))
    total, values = objective(batch, [0.0, 0.0, 0.0, 1.0])  # the student is looked at by nobody now
    assert list(values) == ["peer_1_charbonnier_sr_hr"]
    total.backward()
    assert all(p.grad is None for p in students["student"].parameters())
    assert any(p.grad is not None for p in students["peer_1"].parameters())


def test_mutual_learning_of_features():
    """Deep mutual learning's KL, over the channels of adapted maps, of two pairs of layers."""
    students, objective = _mutual(
        {"type": "l1"}, {"type": "mutual", "against": "peers"}, students=("mobile_sr", "ecbsr"), count=2
    )
    links = {(link.student, link.source): link for link in objective.task.pairs}
    assert set(links) == {("student", "peer_1"), ("peer_1", "student")}
    lr, hr = _images(16, 16), _images(32, 32)
    total, values = objective(Batch(lr, hr))
    link = links["peer_1", "student"]
    pairs = objective.task.pairs[link]
    own = Taps(students["peer_1"], [pair.student.path for pair in pairs]).run(lr).features
    other = Taps(students["student"], [pair.teacher.path for pair in pairs]).run(lr).features
    expected = [
        mutual(adapter.conv(own[pair.student.path]), other[pair.teacher.path])
        for pair, adapter in zip(pairs, objective.task.adapters[link.key])
    ]
    torch.testing.assert_close(values["peer_1_mutual_features_peers"], torch.stack(expected).mean().detach())
    total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in objective.task.parameters())


@pytest.mark.parametrize(
    ("losses", "idle"),
    [
        ([{"type": "l1"}], False),
        ([{"type": "l1"}, {"type": "l1", "against": "teacher"}], False),
        ([{"type": "l1"}, {"type": "spatial_affinity"}], False),
        ([{"type": "l1"}, {"type": "fcfd", "appearance": 0.0}], True),
        ([{"type": "l1"}, {"type": "fitnet"}], False),
        ([{"type": "l1"}, {"type": "l1", "against": "teacher", "weight": 0.0}], True),
        ([{"type": "l1"}, {"type": "l1", "against": "teacher", "schedule": {"start": 5}}], True),
        ([{"type": "spatial_affinity"}], True),
    ],
)
def test_weights_that_take_no_part_in_some_steps_are_foreseen(losses, idle):
    """Several processes must know: they wait for the gradient of each weight."""
    objective = Objective(losses, build_model(small("mobile_sr"), 2), build_model(small("edsr"), 2))
    assert objective.task.has_idle_weights == idle


@pytest.mark.parametrize("name", ["student", "a.b", ""])
def test_a_teachers_name_is_nobody_elses(name):
    with pytest.raises(UserError, match=f"a teacher cannot be called '{name}'"):
        Distiller(build_model(small("mobile_sr"), 2), {name: build_model(small("edsr"), 2)}, [{"type": "fitnet"}])


def test_peers_may_compare_their_features_alone():
    _, objective = _mutual({"type": "fitnet", "against": "peers"}, students=("mobile_sr", "ecbsr"), count=1)
    total, values = objective(Batch(_images(16, 16), _images(32, 32)))
    total.backward()
    assert list(values) == ["fitnet_features_peers", "peer_1_fitnet_features_peers"]


def test_pretrained_networks_look_once_at_each_image(random_backbones):
    student, teacher = build_model(small("mobile_sr"), 2), build_model(small("edsr"), 2)
    losses = [
        {"type": "perceptual", "layers": {"relu1_1": 1.0}},
        {"type": "perceptual", "against": "teacher", "layers": {"relu2_1": 1.0}},
        {"type": "perceptual", "against": "teacher", "layers": {"conv1_2": 1.0}, "name": "again"},
        {"type": "contrastive", "layers": {"relu1_2": 1.0}},
        {"type": "perceptual", "on": "decoded", "layers": {"relu1_1": 1.0}},
        {"type": "lpips"},
        {"type": "lpips", "against": "teacher"},
        {"type": "lpips", "on": "decoded"},
    ]
    distiller = Distiller(student, teacher, losses, count=1)
    runs = {"vgg": [], "alex": []}
    lpips = lpips_network("alex")
    hooks = [
        vgg19_features()[0].register_forward_hook(lambda *_: runs["vgg"].append(1)),
        vgg19_features()[7].register_forward_hook(lambda *_: runs["vgg"].append("too deep")),
        lpips.net.register_forward_hook(lambda *_: runs["alex"].append(1)),
    ]
    distiller(_images(32, 32), _images(64, 64))
    # The student's output, HR, the teacher's output, the negatives, the decoded map, and the image it is compared with.
    assert runs["vgg"] == [1] * 6
    assert runs["alex"] == [1] * 5
    for hook in hooks:
        hook.remove()


def test_shared_looks_change_no_value(random_backbones):
    student, teacher = build_model(small("mobile_sr"), 2), build_model(small("edsr"), 2)
    losses = [
        {"type": "perceptual", "layers": {"relu1_1": 1.0}},
        {"type": "perceptual", "against": "teacher", "layers": {"relu3_1": 1.0}},
        {"type": "lpips", "against": "teacher"},
        {"type": "contrastive"},
    ]
    lr, hr = _images(32, 32), _images(64, 64)
    _, together = Distiller(student, teacher, losses)(lr, hr)
    for loss in losses:
        _, alone = Distiller(student, teacher, [loss, {"type": "l1", "against": "teacher"}])(lr, hr)
        name = next(iter(alone))
        torch.testing.assert_close(together[name], alone[name])


def test_auto_pairs_of_two_students_differ_by_direction():
    first = build_model(architecture(type="mobile_sr", num_feat=8, num_block=3), 2)
    second = build_model(small("ecbsr"), 2)
    there = choose_pairs(first, second, FeatureOptions(count=1))[0]
    back = choose_pairs(second, first, FeatureOptions(count=1))[0]
    assert there == back.reversed


def test_a_loss_that_cannot_be_computed_says_which_and_why():
    distiller = Distiller(build_model(small("mobile_sr"), 2), build_model(small("edsr"), 2), [{"type": "rkd"}])
    expected = "loss rkd_features: rkd compares relations between samples and needs at least 3 of them, got 2: take a larger batch"
    with pytest.raises(UserError, match=expected):
        distiller(_images(16, 16), _images(32, 32))


def test_a_term_without_weight_costs_nothing(random_backbones):
    """Neither the teacher nor the student's taps, nor VGG19's deeper layers, are run for a term whose weight is 0."""
    student, teacher = build_model(small("mobile_sr"), 2), build_model(small("edsr"), 2)
    losses = [
        {"type": "l1"},
        {"type": "l1", "against": "teacher"},
        {"type": "fitnet"},
        {"type": "l1", "on": "decoded"},
        {"type": "perceptual", "layers": {"relu1_1": 1.0}},
        {"type": "perceptual", "layers": {"relu2_1": 1.0}, "name": "deep"},
    ]
    objective = Objective(losses, student, teacher, count=1)
    ran = []
    teacher.net.conv_first.register_forward_hook(lambda *_: ran.append("teacher"))
    teacher.net.conv_last.register_forward_hook(lambda *_: ran.append("teacher's end"))
    for index, name in ((0, "relu1_1"), (5, "pool1")):
        vgg19_features()[index].register_forward_hook(lambda *_, name=name: ran.append(name))
    batch = Batch(_images(16, 16), _images(32, 32))

    def runs(*weights):
        ran.clear()
        _, values = objective(batch, weights)
        assert list(values) == [t for t, w in zip(objective.task.labels, weights) if w]
        return list(ran)

    assert runs(1, 0, 0, 0, 0, 0) == []
    assert runs(1, 1, 0, 0, 0, 0) == ["teacher", "teacher's end"]
    assert runs(1, 0, 1, 0, 0, 0) == ["teacher"]
    assert runs(1, 0, 0, 0, 1, 0) == ["relu1_1"] * 2
    assert runs(0, 0, 0, 0, 1, 1) == ["relu1_1", "pool1"] * 2
    assert runs(0, 0, 0, 1, 0, 0).count("teacher's end") == 2  # its own pass, and the rest from the changed map


def test_a_student_that_only_feature_terms_look_at_stops_at_the_deepest_tap():
    student = build_model(small("mobile_sr"), 2)
    objective = Objective([{"type": "fitnet"}], student, build_model(small("edsr"), 2), count=1)
    ran = []
    student.net.upsampler.register_forward_hook(lambda *_: ran.append("end"))
    total, _ = objective(Batch(_images(16, 16), _images(32, 32)))
    total.backward()
    assert ran == []


def test_the_objective_pickles(random_backbones):
    losses = [{"type": "l1"}, {"type": "fcfd"}, {"type": "lpips", "on": "projected"}, {"type": "rkd", "pool": 1}]
    objective = Objective(losses, build_model(small("mobile_sr"), 2), build_model(small("edsr"), 2), count=1)
    again = pickle.loads(pickle.dumps(objective))
    batch = Batch(torch.rand(3, 3, 16, 16), torch.rand(3, 3, 32, 32))
    torch.testing.assert_close(again(batch)[1], objective(batch)[1])
