"""Losses: values and gradients against other people's code."""

from __future__ import annotations

import kornia
import lpips as lpips_package
import pytest
import torch
import torch.nn.functional as F
import torchvision

from sr_distill.contracts import Batch, Prediction
from sr_distill.data import luma
from sr_distill.errors import UserError
from sr_distill.features import Taps, backbones, photograph, vgg19_features
from sr_distill.losses import (
    LOSSES,
    LossInputs,
    charbonnier,
    contrastive_representation,
    l1,
    lpips,
    mse,
    normalised_difference,
    perceptual,
)
from sr_distill.losses.feature_cache import VGG19_LAYERS
from sr_distill.models import build_model
from sr_distill.zoo import open_model

from ..conftest import IMAGE_PAIR, Objective, images_as_maps, small, terms, vgg_mean


def _pair(*shape):
    return torch.rand(*shape, dtype=torch.float64, requires_grad=True), torch.rand(*shape, dtype=torch.float64)


def _gradient(value, image):
    return torch.autograd.grad(value, image)[0]


@pytest.mark.parametrize("shape", [(1, 3, 5, 7), (4, 3, 8, 6)])
def test_l1_equals_torch(shape):
    sr, hr = _pair(*shape)
    torch.testing.assert_close(l1(sr, hr), F.l1_loss(sr, hr))
    torch.testing.assert_close(_gradient(l1(sr, hr), sr), _gradient(F.l1_loss(sr, hr), sr))


def test_mse_equals_torch():
    sr, hr = _pair(2, 3, 5, 7)
    torch.testing.assert_close(mse(sr, hr), F.mse_loss(sr, hr))
    torch.testing.assert_close(_gradient(mse(sr, hr), sr), _gradient(F.mse_loss(sr, hr), sr))


@pytest.mark.parametrize("eps", [1e-3, 0.1, 1.0])
def test_charbonnier_equals_the_formula_by_hand_and_kornia_at_eps_1(eps):
    sr, hr = _pair(2, 3, 5, 7)
    torch.testing.assert_close(charbonnier(sr, hr, eps), torch.hypot(sr - hr, torch.full_like(sr, eps)).mean())
    by_hand = (sr - hr) / torch.hypot(sr - hr, torch.full_like(sr, eps)) / sr.numel()
    torch.testing.assert_close(_gradient(charbonnier(sr, hr, eps), sr), by_hand)
    if eps == 1.0:
        torch.testing.assert_close(
            charbonnier(sr, hr, eps), 1 + kornia.losses.charbonnier_loss(sr, hr, reduction="mean")
        )


def test_charbonnier_at_identical_images_is_eps_with_zero_gradient():
    image = torch.rand(1, 3, 4, 4, requires_grad=True)
    value = charbonnier(image, image.detach())
    assert value.item() == pytest.approx(1e-3)
    assert _gradient(value, image).abs().max() == 0


def test_vgg_layer_names_are_torchvisions():
    features = torchvision.models.vgg19(weights=None).features
    kinds = {"conv": torch.nn.Conv2d, "relu": torch.nn.ReLU, "pool": torch.nn.MaxPool2d}
    for name, index in VGG19_LAYERS.items():
        if name.startswith("features."):
            assert name == f"features.{index}"
        else:
            assert isinstance(features[index], kinds[name[:4]]), name
    # Positions in torchvision's vgg19().features: the ESRGAN layer conv5_4 is 34, relu3_4 is 17.
    assert (VGG19_LAYERS["conv1_2"], VGG19_LAYERS["relu3_4"], VGG19_LAYERS["conv5_4"], VGG19_LAYERS["pool5"]) == (
        2,
        17,
        34,
        36,
    )


@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_perceptual_equals_torchvision_feature_extraction(random_backbones, distance):
    from torchvision.models.feature_extraction import create_feature_extractor

    layers = {"features.2": 0.5, "relu2_2": 1.0, "conv3_1": 2.0}
    nodes = {"features.2": "a", "features.8": "b", "features.10": "c"}
    vgg = random_backbones["vgg19"].eval()
    for layer in vgg.features:
        layer.inplace = False
    extract = create_feature_extractor(vgg, nodes)
    normalise = torchvision.transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    sr = torch.rand(2, 3, 32, 40, requires_grad=True)
    hr = torch.rand(2, 3, 32, 40)
    maps_sr, maps_hr = extract(normalise(sr)), extract(normalise(hr))
    compare = F.l1_loss if distance == "l1" else F.mse_loss
    means = {name: vgg_mean(vgg.features, int(node.split(".")[1])) for node, name in nodes.items()}
    expected = sum(w * compare(maps_sr[n] / means[n], maps_hr[n] / means[n]) for w, n in zip((0.5, 1.0, 2.0), "abc"))
    got = perceptual(sr, hr, layers, distance)
    torch.testing.assert_close(got, expected)
    gradients = _gradient(got, sr), _gradient(expected, sr)
    # With l1, a difference near 0 may have the other sign, which is a jump of the gradient.
    assert (gradients[0] - gradients[1]).norm() < 1e-2 * gradients[1].norm()


def test_a_vgg_file_of_another_scale_gives_the_same_losses(random_backbones):
    """Caffe's weights make maps some hundred times as large: the same network but for that factor must give the same number."""
    sr, hr, layers = (
        torch.rand(1, 3, 32, 32),
        torch.rand(1, 3, 32, 32),
        {"conv1_2": 1.0, "relu3_4": 0.1, "conv4_1": 1.0},
    )
    before = perceptual(sr, hr, layers)
    with torch.no_grad():
        for layer in random_backbones["vgg19"].features:
            if isinstance(layer, torch.nn.Conv2d):
                layer.weight.mul_(1.7)
                layer.bias.mul_(1.7)
    vgg19_features.cache_clear()
    assert perceptual(sr, hr, layers).item() == pytest.approx(before.item(), rel=1e-4)
    assert vgg19_features().source == "random weights"


def test_perceptual_without_layers_takes_those_of_the_options(random_backbones):
    sr, hr = torch.rand(1, 3, 48, 48), torch.rand(1, 3, 48, 48)
    torch.testing.assert_close(perceptual(sr, hr), perceptual(sr, hr, {"conv3_4": 1.0, "conv4_4": 1.0}))


@pytest.mark.parametrize("network", ["alex", "vgg", "squeeze"])
def test_lpips_equals_the_authors_package_and_converts_the_range_once(random_backbones, network):
    reference = lpips_package.LPIPS(net=network, pnet_rand=True, verbose=False).eval()
    own = backbones.lpips_network(network)
    reference.load_state_dict(own.state_dict())
    tower = random_backbones[{"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}[network]].features.eval()
    sr, hr = torch.rand(2, 3, 64, 72, requires_grad=True), torch.rand(2, 3, 64, 72)
    got = lpips(sr, hr, network)
    expected = reference(sr * 2 - 1, hr * 2 - 1).mean()
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(_gradient(got, sr), _gradient(expected, sr), atol=1e-7, rtol=1e-4)
    # The slices of LPIPS hold the backbone's weights: its first map is that of torchvision's network.
    scaled = own.scaling_layer(hr * 2 - 1)
    torch.testing.assert_close(own.net.slice1(scaled), tower[: len(own.net.slice1)](scaled))


def test_the_difference_of_normalised_maps_is_lpips_without_its_weights():
    student, teacher = _pair(2, 5, 6, 7)
    unit = lpips_package.normalize_tensor
    expected = (unit(student) - unit(teacher)).square().sum(1).mean()
    got = normalised_difference(student, teacher)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(_gradient(got, student), _gradient(expected, student), atol=1e-9, rtol=1e-6)


def _loss(name):
    """A term as a function of two images; one on features takes them for maps."""
    module = terms({"type": name})[0].build([IMAGE_PAIR], 0)
    lr = torch.rand(2, 3, 32, 32)

    def loss(sr, hr):
        return module(LossInputs(lr, hr, Prediction(sr), [hr], [images_as_maps(sr, hr)], lambda image: image))

    return loss


ON_SR = [name for name in LOSSES if terms({"type": name})[0].on == "sr"]


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "fcfd"])  # which needs networks
def test_identical_images_cost_nothing_and_gradients_are_finite(random_backbones, name):
    loss = _loss(name)
    image = torch.rand(4, 3, 64, 64)
    # One is zero where the student is beyond the margin, the other never.
    if name not in ("activation_boundary", "contrastive_representation"):
        assert loss(image, image).item() == pytest.approx(
            1e-3 if name == "charbonnier" else 0, abs=1e-4 if name == "dist" else 1e-6
        )
    for sr in (image.clone(), torch.zeros_like(image), torch.ones_like(image) * 50):
        sr.requires_grad_()
        assert _gradient(loss(sr, image), sr).isfinite().all()


@pytest.mark.parametrize("name", [name for name in ON_SR if name != "contrastive"])  # a ratio of means over the batch
def test_a_batch_costs_the_mean_of_its_images(random_backbones, name):
    loss = _loss(name)
    sr, hr = torch.rand(3, 3, 64, 72), torch.rand(3, 3, 64, 72)
    single = torch.stack([loss(a[None], b[None]) for a, b in zip(sr, hr)]).mean()
    torch.testing.assert_close(loss(sr, hr), single, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", ON_SR)
def test_the_target_gets_no_gradient_and_the_loss_no_trainable_weights(random_backbones, name):
    sr, hr = torch.rand(1, 3, 64, 64, requires_grad=True), torch.rand(1, 3, 64, 64)
    assert _loss(name)(sr, hr).requires_grad
    assert not list(terms({"type": name})[0].build([], 0).parameters())


def test_perceptual_through_a_network_for_super_resolution():
    """Its maps of the images, each in units of its size on a photograph; once an image, however many terms look at it."""
    sr, hr = torch.rand(1, 3, 24, 24, requires_grad=True), torch.rand(1, 3, 24, 24)
    layers, model = {"body.1": 2.0, "body.3": 1.0}, open_model("mobile_sr_tiny_x4")
    of_sr, of_hr, of_photo = (Taps(model, list(layers)).run(x).features for x in (sr, hr, photograph()))
    expected = sum(f * (of_sr[k] - of_hr[k]).abs().mean() / of_photo[k].abs().mean() for k, f in layers.items())
    got = perceptual(sr, hr, layers, network="mobile_sr_tiny_x4")
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(_gradient(got, sr), _gradient(expected, sr))
    term = {"type": "perceptual", "network": "mobile_sr_tiny_x4", "layers": layers}
    (loss,) = terms(term)
    assert loss.weights_used()[0].endswith("mobile_sr_tiny_x4.safetensors")
    assert loss.vgg_layers == frozenset()
    with pytest.raises(UserError, match="layers must name those of mobile_sr_tiny_x4"):
        terms({"type": "perceptual", "network": "mobile_sr_tiny_x4"})
    student = build_model(small("mobile_sr"), 2)
    with pytest.raises(UserError, match="has no layer 'body.77'"):
        Objective([term | {"layers": {"body.77": 1.0}}], student)
    with pytest.raises(UserError, match="mobile_sr_tiny_x5"):
        Objective([term | {"network": "mobile_sr_tiny_x5"}], student)


def test_the_hard_part_of_hard_soft_is_any_loss_of_the_output(random_backbones):
    """With its options, through the same door as a term of its own; its networks are shared with other terms."""
    student, teacher = build_model(small("mobile_sr"), 2), build_model(small("edsr"), 2)
    batch = Batch(torch.rand(2, 3, 24, 24), torch.rand(2, 3, 48, 48))
    for task in (
        "charbonnier",
        {"type": "perceptual", "layers": {"relu1_2": 1.0}},
        {"type": "lpips", "network": "squeeze"},
    ):
        name = task if isinstance(task, str) else task["type"]
        alone = {"type": task} if isinstance(task, str) else task
        losses = [
            {"type": "hard_soft", "task": task, "alpha": 0.25},
            {"type": "soft_target", "temperature": 3.0},
            alone,
        ]
        _, values = Objective(losses, student, teacher, count=1)(batch)
        both = 0.25 * values["soft_target_features"] + 0.75 * values[f"{name}_sr_hr"]
        torch.testing.assert_close(values["hard_soft_features"], both)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"task": {"type": "l1", "on": "features"}}, "task is a loss of the output to HR"),
        ({"task": {"type": "l1", "against": "teacher"}}, "task is a loss of the output to HR"),
        ({"task": {"type": "l1", "weight": 2.0}}, "task is a loss of the output to HR"),
        ({"task": "hard_soft"}, "Allowed: activation_boundary"),
        ({"task": {"type": "charbonnier", "epsilon": 1.0}}, "epsilon"),
        ({"task": "charbonnier", "alpha": 1.0}, "no share"),
        ({"on": "sr", "over": "channels"}, "red, green and blue"),
        ({"against": "hr"}, "against"),
    ],
)
def test_hard_soft_refuses_what_it_cannot_mean(change, expected):
    with pytest.raises(UserError, match=expected):
        terms({"type": "hard_soft", **change})


def test_distributions_of_images_are_over_their_places():
    """Brightness counts for nothing, and each colour is a distribution of its own."""
    student, teacher = build_model(small("mobile_sr"), 2), build_model(small("edsr"), 2)
    losses = [{"type": "soft_target", "on": "sr", "against": "teacher", "temperature": 0.1}]
    batch = Batch(torch.rand(2, 3, 16, 16), torch.rand(2, 3, 32, 32))
    total, _ = Objective(losses, student, teacher)(batch)
    with torch.no_grad():
        s, t = (x.flatten(2) / 0.1 for x in (student(batch.lr), teacher(batch.lr).clamp(0, 1)))
        expected = 0.01 * F.kl_div(s.log_softmax(2), t.softmax(2), reduction="sum") / 6
    torch.testing.assert_close(total.detach(), expected)
    image = torch.rand(2, 3, 8, 8)
    loss = terms({"type": "soft_target", "on": "sr", "against": "hr"})[0]
    assert loss(*loss.arguments(None, image, image + 0.2)).item() == pytest.approx(0, abs=1e-6)


def test_contrastive_representation_tells_images_apart():
    """Negatives are the other images, then what is remembered, oldest out first; embeddings of the same image pull together."""
    loss = terms({"type": "contrastive_representation", "dimensions": 5, "memory": 3, "temperature": 0.5})[0]
    module = loss.build([IMAGE_PAIR], 0)
    s, t = torch.randn(2, 3, 6, 6), torch.randn(2, 3, 6, 6)
    inputs = LossInputs(s, s, Prediction(s), [], [images_as_maps(s, t)], lambda image: image)

    def embedded(head, x):
        return F.normalize(head(x.mean((2, 3))), dim=1)

    a, b = embedded(module.student[0], s), embedded(module.teacher[0], t)
    negatives = [x.flip(0)[:, None] for x in (a, b)]
    torch.testing.assert_close(module(inputs), contrastive_representation(a, b, *negatives, temperature=0.5))
    torch.testing.assert_close(module.memory[0, 0], torch.cat([torch.zeros(1, 5), a]))
    negatives = [torch.cat([n, x.expand(2, 2, 5)], 1) for n, x in zip(negatives, (a, b))]
    torch.testing.assert_close(module(inputs), contrastive_representation(a, b, *negatives, temperature=0.5))
    torch.testing.assert_close(module.memory[0, 1], torch.cat([b[1:], b]))
    gradients = torch.autograd.grad(module(inputs), list(module.parameters()))
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_an_unknown_layer_is_named_with_its_nearest(random_backbones):
    with pytest.raises(UserError, match=r"vgg19 has no layer 'conv3_5'\. Did you mean 'conv3_"):
        perceptual(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32), {"conv3_5": 1.0})


@pytest.mark.parametrize("name", ["perceptual", "lpips"])
def test_missing_weights_are_an_error_before_training(no_data, name, tmp_path):
    student = build_model(small("mobile_sr"), 2)
    with pytest.raises(UserError) as caught:
        Objective([{"type": name}], student)
    text = str(caught.value)
    assert "pretrained weights of" in text
    assert str(tmp_path / "torch_home") in text
    assert "SR_DISTILL_DATA" in text
    assert "no network" in text


def test_weights_below_the_data_root_are_found(no_data, tmp_path, monkeypatch):
    from safetensors.torch import save_file

    state = torchvision.models.squeezenet1_1(weights=None).features.state_dict()
    (tmp_path / "backbones").mkdir()
    save_file(
        {f"features.{k}": v.half() for k, v in state.items()},
        str(tmp_path / "backbones/squeezenet1_1_features.safetensors"),
    )
    monkeypatch.setenv("SR_DISTILL_DATA", str(tmp_path))
    network = backbones.lpips_network("squeeze", download=False)
    torch.testing.assert_close(network.net.slice1[0].weight, state["0.weight"].half().float())


def test_a_luma_student_is_compared_in_luma_alone():
    """With the target's chroma taken out of the comparison, L1 is that of full-range luma, and its gradient is luma's."""
    student = build_model(small("fsrcnn", color="y"), 2)
    task = Objective([{"type": "l1"}], student).task
    lr, hr = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 16, 16)
    total, values = task(Batch(lr, hr))
    with torch.no_grad():
        expected = (luma(student(lr)) - luma(hr)).abs().mean() * 255 / 219
    torch.testing.assert_close(total.detach(), expected, atol=1e-6, rtol=1e-5)
    assert list(values) == ["l1_sr_hr"]
    recoloured = hr + torch.tensor([0.114, -0.058, 0.0]).view(1, 3, 1, 1)  # about the same luma, another hue
    recoloured = recoloured + 255 / 219 * (luma(hr) - luma(recoloured))
    torch.testing.assert_close(task(Batch(lr, recoloured))[0], total, atol=1e-6, rtol=1e-4)


def test_the_task_weighs_terms_once_and_keeps_hr_apart_from_the_teacher():
    trees = [
        {"type": "l1", "weight": 0.3},
        {"type": "l1", "against": "teacher", "weight": 2.0},
        {"type": "charbonnier", "name": "smooth"},
    ]
    student = build_model(small("mobile_sr"), 2)
    task = Objective(trees, student, build_model(small("edsr"), 2)).task
    lr, hr, teacher = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    total, values = task(Batch(lr, hr), {"teacher": Prediction(teacher)})
    sr = student(lr)
    assert list(values) == ["l1_sr_hr", "l1_sr_teacher", "smooth"]
    torch.testing.assert_close(values["l1_sr_hr"], F.l1_loss(sr, hr).detach())
    torch.testing.assert_close(values["l1_sr_teacher"], F.l1_loss(sr, teacher).detach())
    torch.testing.assert_close(total, 0.3 * F.l1_loss(sr, hr) + 2 * F.l1_loss(sr, teacher) + charbonnier(sr, hr))


OF_DIFFERENCES = [
    name for name, loss in LOSSES.items() if loss.of_differences and loss.model_fields["on"].default == "sr"
]


@pytest.mark.parametrize("against", ["hr", "teacher"])
@pytest.mark.parametrize("name", OF_DIFFERENCES)
def test_of_a_luma_student_gray_images_give_the_value_and_gradient_of_coloured_ones(name, against, monkeypatch):
    student, teacher = build_model(small("mobile_sr", color="y"), 2), build_model(small("edsr"), 2)
    batch = Batch(torch.rand(2, 3, 16, 12), torch.rand(2, 3, 32, 24))
    found = []
    for gray in (True, False):
        monkeypatch.setattr(LOSSES[name], "of_differences", gray)
        objective = Objective([{"type": name, "against": against}], student, teacher)
        assert objective.task.needs([1.0])["student"].color != gray
        student.zero_grad()
        total, _ = objective(batch)
        total.backward()
        found.append((total.detach(), [p.grad.clone() for p in student.parameters()]))
    assert found[0][0] > 0
    torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=1e-4)
