"""Networks and metrics of the user's own: found, loaded once, named in files, usable by every command."""

from __future__ import annotations

import json
import pickle
import re
import sys

import pytest
import torch
from safetensors import safe_open

from sr_distill.cli import main
from sr_distill.contracts import Batch
from sr_distill.errors import UserError
from sr_distill.evaluate import MetricOptions, make_metric, open_set
from sr_distill.losses import perceptual
from sr_distill.models import bicubic_model, build_model, load_model, save_model, upscale_uint8
from sr_distill.options import LossOptions, validate
from sr_distill.plugins import load_plugins, plugin_of
from sr_distill.registry import ARCHITECTURES, LOSSES, METRICS, STUDENTS, TEACHERS

from ..conftest import Objective, natural_image, small, write_image

NETWORK = '''
from typing import Literal

from pydantic import Field
from torch import nn

from sr_distill.models import Architecture
from sr_distill.registry import register_student


class Tiny(nn.Sequential):
    def __init__(self, scale, num_feat):
        super().__init__(
            nn.Conv2d(3, num_feat, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(num_feat, 3 * scale**2, 3, padding=1),
            nn.PixelShuffle(scale),
        )


@register_student
class TinyOptions(Architecture):
    """Two convolutions."""

    type: Literal["tiny"]
    num_feat: int = Field(4, ge=1, description="Channels.")

    def build(self, scale):
        return Tiny(scale, self.num_feat)
'''


@pytest.fixture(autouse=True)
def entries(monkeypatch):
    """The registries as they were, after the test; the function makes them so at once."""
    before = [(registry, dict(registry.items())) for registry in (STUDENTS, TEACHERS, METRICS, LOSSES)]

    def restore():
        for registry, known in before:
            monkeypatch.setattr(registry, "_entries", dict(known))

    restore()
    return restore


def _plugin(path, text=NETWORK):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def test_a_file_is_executed_once_and_its_classes_pickle(tmp_path, monkeypatch):
    name = _plugin(tmp_path / "my_models.py", NETWORK + "\nopen('count', 'a').write('x')\n")
    monkeypatch.chdir(tmp_path)
    load_plugins([name])
    load_plugins(["my_models.py"])
    load_plugins(["my_models.py"], tmp_path)
    assert (tmp_path / "count").read_text() == "x"
    options = ARCHITECTURES["tiny"](type="tiny")
    assert plugin_of(type(options)) == "my_models.py"
    again = pickle.loads(pickle.dumps(options))
    assert again == options
    assert type(again) is type(options)


def test_files_of_one_name_are_two_plugins(tmp_path):
    for folder, network in (("a", "tiny_a"), ("b", "tiny_b")):
        load_plugins([_plugin(tmp_path / folder / "m.py", NETWORK.replace('"tiny"', f'"{network}"'))])
    assert {"tiny_a", "tiny_b"} <= set(STUDENTS)


def test_a_file_is_looked_for_beside_the_options_file_too(tmp_path, monkeypatch):
    _plugin(tmp_path / "options/my_models.py")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"plugin not found: my_models\.py; looked for my_models\.py\."):
        load_plugins(["my_models.py"])
    with pytest.raises(UserError, match=r"looked for none\.py, .*options/none\.py"):
        load_plugins(["none.py"], tmp_path / "options")
    load_plugins(["my_models.py"], tmp_path / "options")
    assert "tiny" in ARCHITECTURES


def test_a_module_of_the_working_folder(tmp_path, monkeypatch):
    _plugin(tmp_path / "own_package_of_test/__init__.py", "")
    _plugin(tmp_path / "own_package_of_test/sr/__init__.py", "from . import nets")
    _plugin(tmp_path / "own_package_of_test/sr/nets.py")
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    load_plugins(["own_package_of_test.sr"])
    assert sys.path == path
    assert plugin_of(ARCHITECTURES["tiny"]) == "own_package_of_test.sr"
    assert plugin_of(ARCHITECTURES["edsr"]) is None
    with pytest.raises(UserError, match=r"no module 'own_package_of_test\.none', neither installed nor in"):
        load_plugins(["own_package_of_test.none"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import torch\n\ntorch.relux\n", r"my\.py, line 3: AttributeError: .*relux"),
        ("x = 1\ndef f(:\n", r"my\.py, line 2: SyntaxError"),
        ("import no_such_package\n", r"my\.py, line 1: ModuleNotFoundError: .*no_such_package"),
        (NETWORK.replace('"tiny"', '"edsr"'), r"my\.py, line \d+: TypeError: there is a network 'edsr' already"),
        (NETWORK.replace('"""Two convolutions."""', "bare: int = 1"), r"TypeError: TinyOptions must describe bare"),
    ],
)
def test_a_plugin_that_cannot_be_imported_is_explained(text, expected, tmp_path):
    name = _plugin(tmp_path / "my.py", text)
    for _ in range(2):
        with pytest.raises(UserError, match=f"plugin .*{expected}"):
            load_plugins([name])


def _saved(tmp_path, entries):
    """A file with the plugin's network, and the plugin elsewhere, not loaded yet."""
    load_plugins([_plugin(tmp_path / "here/my_models.py")])
    save_model(build_model(ARCHITECTURES["tiny"](type="tiny"), 2), tmp_path / "tiny.safetensors")
    entries()
    return str(tmp_path / "tiny.safetensors"), _plugin(tmp_path / "there/my_models.py")


def test_a_model_file_says_which_plugin_it_needs(tmp_path, entries):
    file, plugin = _saved(tmp_path, entries)
    with safe_open(file, "pt") as opened:
        assert opened.metadata()["plugin"] == "my_models.py"
    needs = "tiny.safetensors: needs the network 'tiny' of the plugin my_models.py: name it with --plugins my_models.py"
    with pytest.raises(UserError, match=re.escape(needs)):
        load_model(tmp_path / "tiny.safetensors")
    load_plugins([plugin])
    model = load_model(tmp_path / "tiny.safetensors")
    with torch.no_grad():
        assert model(torch.rand(1, 3, 5, 6)).shape == (1, 3, 10, 12)


@pytest.mark.parametrize(
    "command",
    [
        "evaluate --datasets {set} --scale 2 --lpips none --device cpu --model {file}",
        "inference -i {set} -o {out} --device cpu --model {file}",
        "features --model {file}",
        "features --model tiny",
        "profile_model --runs 1 --device cpu --model {file}",
        "select_student --runs 1 --device cpu --datasets {set} --candidates {file}",
    ],
)
def test_every_command_takes_plugins(command, tmp_path, entries, capsys, monkeypatch):
    monkeypatch.setattr("sr_distill.evaluate.profile.FRAME", (64, 96))
    file, plugin = _saved(tmp_path, entries)
    write_image(tmp_path / "set/a.png", natural_image(48, 48))
    arguments = command.format(file=file, set=tmp_path / "set", out=tmp_path / "out").split()
    assert main(arguments) == 2
    assert "tiny" in capsys.readouterr().err
    assert main([*arguments, "--plugins", plugin]) == 0
    assert main([*arguments, "--plugins", str(tmp_path / "none.py")]) == 2
    assert "plugin not found" in capsys.readouterr().err


METRIC = '''
from typing import Literal

from pydantic import Field

from sr_distill.evaluate import Metric
from sr_distill.registry import register_metric


@register_metric
class MyMetric(Metric):
    """Largest difference in levels,
    whatever the scale.

    More about it.
    """

    type: Literal["my_metric"]

    def measure(self, pair, scale):
        return (pair.sr.double() - pair.hr.double()).abs().flatten(1).amax(1)


@register_metric
class NeedsMore(MyMetric):
    """With an option that has no default."""

    type: Literal["needs_more"]
    border: int = Field(description="Pixels.")


@register_metric
class Wrong(MyMetric):
    """One value for the batch."""

    type: Literal["wrong"]

    def measure(self, pair, scale):
        return super().measure(pair, scale).mean()
'''


def test_a_metric_of_a_plugin_is_measured(tmp_path, capsys):
    for name, seed in (("a", 1), ("b", 2)):
        write_image(tmp_path / f"set/{name}.png", natural_image(48, 64, seed=seed))
    plugin = _plugin(tmp_path / "my_metric.py", METRIC)
    arguments = [
        "evaluate",
        "--datasets",
        str(tmp_path / "set"),
        "--scale",
        "2",
        "--device",
        "cpu",
        "--plugins",
        plugin,
    ]
    out = tmp_path / "out"
    assert main([*arguments, "--metrics", "psnr_y", "my_metric", "--out", str(out), "--no-profile"]) == 0
    assert "my_metric: Largest difference in levels, whatever the scale." in capsys.readouterr().out
    expected = {}
    for image in open_set(str(tmp_path / "set"), 2, None).images:
        lr, hr = image.load(2)
        sr = upscale_uint8(bicubic_model(2), lr[None], torch.device("cpu"))[0]
        expected[image.name] = (sr.double() - hr.double()).abs().max().item()
    images = json.loads((out / "results.json").read_text())["results"][0]["images"]
    assert {image["image"]: image["my_metric"] for image in images} == expected
    assert all(image["psnr_y_b2"] > 20 for image in images)
    assert main([*arguments, "--metrics", "my_metrik"]) == 2
    assert "Did you mean 'my_metric'?" in capsys.readouterr().err
    assert main([*arguments, "--metrics", "needs_more"]) == 2
    assert "border: missing. Pixels." in capsys.readouterr().err
    assert main([*arguments, "--metrics", "wrong"]) == 1
    assert "the metric wrong gave (), not one value for each image" in capsys.readouterr().err


def test_metrics_are_named_in_options():
    assert validate(MetricOptions, "psnr_y", "o") == validate(MetricOptions, {"type": "psnr_y"}, "o")
    assert make_metric(validate(MetricOptions, "ssim_rgb", "o"), 3) == make_metric("ssim_rgb", 3)
    with pytest.raises(UserError):
        validate(MetricOptions, {"type": "psnr_y", "border": 3}, "o")


def _run(text):
    exec(compile(text, "mine", "exec", dont_inherit=True), {"__name__": "mine"})


def test_a_field_that_the_function_does_not_take_is_refused():
    """A loss whose option would be ignored is a mistake of its author, said when it is registered."""
    head = "from typing import Literal\nfrom pydantic import Field\nfrom sr_distill.losses import FeatureLoss, register_loss\n"
    function = "def f(student, teacher, beta=1.0):\n    return (student - teacher).abs().mean() * beta\n"
    options = (
        '@register_loss(f)\nclass Mine(FeatureLoss):\n    """Mine."""\n'
        '    type: Literal["mine"]\n    {field}: float = Field(1.0, description="A factor.")\n'
    )
    with pytest.raises(TypeError, match="Mine: gamma is no keyword argument of f, so it would have no effect"):
        _run(head + function + options.format(field="gamma"))
    _run(head + function + options.format(field="beta"))
    loss = validate(LossOptions, {"type": "mine", "beta": 3.0}, "test")
    assert loss(torch.ones(2), torch.zeros(2)).item() == 3.0
    uses_it = (
        options.format(field="gamma")
        + "    def arguments(self, inputs, student, target):\n        return student * self.gamma, target\n"
    )
    _run(head + function + uses_it.replace('"mine"', '"uses_it"'))
    used = validate(LossOptions, {"type": "uses_it", "gamma": 2.0}, "test")
    assert used(*used.arguments(None, torch.ones(2), torch.zeros(2))).item() == 2.0

    family = "class Base(FeatureLoss):\n    idle: float = Field(1.0, description='Unused.')\n"
    heir = options.format(field="beta").replace("(FeatureLoss)", "(Base)").replace('"mine"', '"heir"')
    with pytest.raises(TypeError, match="idle is no keyword argument"):
        _run(head + function + family + heir)
    with pytest.raises(TypeError, match=r"give its function: @register_loss\(function\)"):
        _run(head + function + options.format(field="beta").replace("(f)", ""))


def test_a_loss_of_ones_own_may_look_through_vgg(random_backbones):
    """It need not say which layers it looks at; those that the others announced are looked at once all the same."""
    head = "from typing import Literal\nfrom sr_distill.losses import PixelLoss, perceptual, register_loss\n"
    text = 'def deep(sr, target):\n    return perceptual(sr, target, {"conv2_1": 1.0})\n\n\n@register_loss(deep)\n'
    _run(head + text + 'class Deep(PixelLoss):\n    """Deep."""\n    type: Literal["deep"]\n')
    student, hr = build_model(small("mobile_sr"), 2), torch.rand(1, 3, 32, 32)
    losses = [{"type": "deep"}, {"type": "perceptual", "layers": {"conv1_1": 1.0}}]
    batch = Batch(torch.rand(1, 3, 16, 16), hr)
    _, values = Objective(losses, student)(batch)
    torch.testing.assert_close(values["deep_sr_hr"], perceptual(student(batch.lr), hr, {"conv2_1": 1.0}).detach())


def test_a_network_of_the_wrong_size_is_a_sentence(tmp_path):
    load_plugins([_plugin(tmp_path / "my_models.py", NETWORK.replace("nn.PixelShuffle(scale)", "nn.PixelShuffle(1)"))])
    with pytest.raises(
        UserError, match=r"tiny at scale 2 makes \(1, 12, 16, 16\) of \(1, 3, 16, 16\): a network gives"
    ):
        build_model(ARCHITECTURES["tiny"](type="tiny"), 2)


def test_a_mistake_in_a_metric_shows_where_it_is(tmp_path, capsys):
    head = "    def measure(self, pair, scale):"
    plugin = _plugin(tmp_path / "my_metric.py", METRIC.replace(head, f"{head}\n        raise ValueError('mine')"))
    write_image(tmp_path / "set/a.png", natural_image(48, 48))
    arguments = ["--datasets", str(tmp_path / "set"), "--scale", "2", "--device", "cpu", "--metrics", "my_metric"]
    assert main(["evaluate", "--plugins", plugin, *arguments]) == 3
    said = capsys.readouterr().err
    assert "ValueError: mine" in said
    assert "my_metric.py" in said
