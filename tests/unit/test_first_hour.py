"""What people do in their first hour: the package as a library, commands that are mistyped, options files to begin with."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

import sr_distill as sd
from sr_distill.cli import main
from sr_distill.errors import UserError, did_you_mean
from sr_distill.files import atomic_path, examples
from sr_distill.options import load_options, remarks_on_options
from sr_distill.train.checkpoint import save_checkpoint

from ..conftest import ROOT, natural_image, small, write_image
from .test_options import MINIMAL

STUDENT = "mobile_sr_tiny_x4"


class Plain(nn.Module):
    """A network that this package does not know."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, channels, 3, padding=1)
        self.tail = nn.Conv2d(channels, 12, 3, padding=1)

    def forward(self, x):
        return nn.functional.pixel_shuffle(self.tail(self.body(x).relu()), 2)


@pytest.fixture(scope="module")
def student():
    return sd.open_model(STUDENT)


def test_everything_that_is_offered_is_listed_and_there():
    assert dir(sd) == sorted(
        [
            "Distiller",
            "ModuleDistiller",
            "UserError",
            "__version__",
            "evaluate",
            "open_model",
            "save_model",
            "train",
            "upscale",
        ]
    )
    for name in dir(sd):
        assert name == "__version__" or callable(getattr(sd, name))
        assert name == "__version__" or (getattr(sd, name).__doc__ or "").strip()
    with pytest.raises(AttributeError):
        _ = sd.upscal


def test_importing_the_package_imports_nothing_large():
    code = "import sys, sr_distill; print(sorted({'torch', 'numpy', 'PIL', 'pydantic'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
def test_an_array_comes_back_as_what_it_is(student, dtype):
    pixels = natural_image(12, 15)
    image = pixels if dtype == "uint8" else (pixels / 255).astype(dtype)
    large = sd.upscale(image, student, device="cpu")
    assert (large.shape, large.dtype) == ((48, 60, 3), np.dtype(dtype))
    with torch.no_grad():
        expected = (
            student(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255)[0].clamp(0, 1).permute(1, 2, 0)
        )
    scale = 255 if dtype == "uint8" else 1
    np.testing.assert_allclose(large / scale, expected.numpy(), atol=0.502 / 255 if dtype == "uint8" else 1e-5)
    for gray in (image[:, :, 0], image[:, :, :1]):
        assert sd.upscale(gray, student, device="cpu").shape == (48, 60, *gray.shape[2:])


def test_a_tensor_an_image_and_a_file_come_back_as_what_they_are(student, tmp_path):
    pixels = natural_image(9, 11)
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    large = sd.upscale(tensor, student, device="cpu")
    assert (large.shape, large.dtype) == ((3, 36, 44), torch.uint8)
    assert sd.upscale(tensor[None].half() / 255, student, device="cpu").dtype == torch.float16
    assert sd.upscale(tensor[None].float() / 255, student, device="cpu").shape == (1, 3, 36, 44)
    from_file = sd.upscale(write_image(tmp_path / "a.png", pixels), STUDENT, device="cpu")
    from_image = sd.upscale(Image.fromarray(pixels), student, device="cpu")
    for image in (from_file, from_image):
        np.testing.assert_array_equal(np.asarray(image), large.permute(1, 2, 0).numpy())


def test_several_pictures_in_one_file_are_not_made_one(student, tmp_path):
    frames = [Image.fromarray(natural_image(9, 11)), Image.fromarray(natural_image(9, 11, seed=2))]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(sd.UserError, match=r"a\.gif has 2 frames or pages, and one image comes out"):
        sd.upscale(tmp_path / "a.gif", student, device="cpu")
    with Image.open(tmp_path / "a.gif") as moving:
        moving.seek(1)
        assert sd.upscale(moving, student, device="cpu").size == (44, 36)


@pytest.mark.parametrize("wrong", [{"precision": "half"}, {"alpha": "none"}])
def test_a_word_that_is_none_of_the_words_is_refused(student, wrong):
    with pytest.raises(sd.UserError, match="allowed: "):
        sd.upscale(np.zeros((8, 8, 3), np.uint8), student, device="cpu", **wrong)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.full((8, 8, 3), 200.0), r"floats are in \[0, 1\], and these go from 200 to 200"),
        (np.full((8, 8, 3), np.nan, np.float32), r"floats are in \[0, 1\]"),
        (np.full((8, 8, 3), -0.1), r"these go from -0\.1"),
        (np.zeros((8, 8, 3), np.int32), "values are uint8, or floats"),
        (np.zeros((8, 8, 5), np.uint8), r"an array is \(H, W\)"),
        (np.zeros((3, 8, 8), np.uint8), r"an array is \(H, W\)"),
        (torch.zeros(8, 8, 3), r"a tensor is \(C, H, W\)"),
        (torch.zeros(3, 0, 8), r"a tensor is \(C, H, W\)"),
        ([[1, 2]], r"this is a builtins\.list"),
        ("nowhere.png", "nowhere.png: there is no such file"),
    ],
)
def test_what_is_no_image_is_refused(student, image, said):
    with pytest.raises(sd.UserError, match=said):
        sd.upscale(image, student, device="cpu")


def test_measuring(student):
    found = sd.evaluate(student, "embedded", metrics=["psnr_y"], device="cpu")
    assert found["embedded"]["psnr_y"] == pytest.approx(30.545, abs=0.01)
    with pytest.raises(UserError, match="there is no metric 'psnr'. Did you mean 'psnr_y'"):
        sd.evaluate(student, "embedded", metrics=["psnr"])


def test_functions_are_losses_of_a_distiller(student):
    net, teacher = Plain(), Plain(8)
    losses = [
        nn.L1Loss(),
        {"function": lambda a, b: (a - b).square().mean(), "against": "teacher", "weight": 0.5, "name": "squares"},
        {"function": lambda a, b: (a - b).abs().mean(), "on": "features", "name": "maps"},
    ]
    distiller = sd.Distiller(net, teacher, losses, pairs=[("body", "body")])
    lr, hr = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 32, 32)
    total, terms = distiller(lr, hr)
    assert terms["L1Loss_sr_hr"].item() == pytest.approx((net(lr) - hr).abs().mean().item(), rel=1e-5)
    squares = (net(lr) - teacher(lr).clamp(0, 1)).square().mean().item()
    assert terms["squares"].item() == pytest.approx(squares, rel=1e-5)
    assert total.item() == pytest.approx(sum(terms.values()).item() - 0.5 * squares, rel=1e-5)
    total.backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    with pytest.raises(UserError, match=r"losses\[0\]: function: got 3"):
        sd.Distiller(net, teacher, [{"function": 3}])


def test_a_network_of_ones_own_is_saved_with_what_rebuilds_it(tmp_path):
    net, x = Plain(channels=6), torch.rand(1, 3, 7, 9)
    with pytest.raises(UserError, match=r"is another network than the one to be saved"):
        sd.save_model(net, tmp_path / "a.safetensors")
    sd.save_model(net, tmp_path / "a.safetensors", arguments={"channels": 6})
    again = sd.open_model(tmp_path / "a.safetensors")
    torch.testing.assert_close(again(x), net(x), atol=0, rtol=0)
    assert again.spec.scale == 2
    sd.save_model(again, tmp_path / "b.safetensors", arguments={"channels": 6})

    class Local(Plain):
        pass

    with pytest.raises(UserError, match="cannot be imported"):
        sd.save_model(Local(), tmp_path / "c.safetensors")
    with pytest.raises(UserError, match=r"makes \(1, 3, 32, 33\)"):
        sd.save_model(nn.ZeroPad2d((0, 1, 0, 0)), tmp_path / "c.safetensors")
    assert not (tmp_path / "c.safetensors").exists()


def test_a_file_does_not_choose_what_is_called(tmp_path):
    from safetensors.torch import save_file

    metadata = {"format": "sr_distill 1", "scale": "2", "factory": "os:system", "arguments": '{"command": "true"}'}
    save_file({"w": torch.zeros(1)}, tmp_path / "bad.safetensors", metadata)
    with pytest.raises(UserError, match="os:system is no class of networks"):
        sd.open_model(tmp_path / "bad.safetensors")


def test_a_checkpoint_that_is_not_recognised_can_be_told_its_network(tmp_path, capsys):
    from sr_distill.models import build_model

    torch.save(build_model(small("ecbsr"), 2).net.state_dict(), tmp_path / "x.pth")
    write_image(tmp_path / "in.png", natural_image(8, 8))
    common = ["-i", str(tmp_path / "in.png"), "-o", str(tmp_path / "out.png"), "--scale", "2", "--device", "cpu"]
    options = yaml.safe_dump(small("ecbsr").model_dump(), default_flow_style=True).replace("\n", "")
    assert main(["inference", *common, "--model", str(tmp_path / "x.pth"), "--architecture", options]) == 0
    assert Image.open(tmp_path / "out.png").size == (16, 16)
    assert main(["inference", *common, "--model", str(tmp_path / "x.pth"), "--architecture", "ecbsrr"]) == 2
    assert "Did you mean 'ecbsr'?" in capsys.readouterr().err


def test_a_student_of_a_known_architecture_opens_in_spandrel(tmp_path):
    spandrel = pytest.importorskip("spandrel")
    from sr_distill.models import build_model

    model = build_model(small("compact"), 4).eval()
    sd.save_model(model, tmp_path / "compact.safetensors")
    there = spandrel.ModelLoader().load_from_file(str(tmp_path / "compact.safetensors"))
    x = torch.rand(1, 3, 9, 8)
    assert there.scale == 4
    torch.testing.assert_close(there(x), model(x).clamp(0, 1), atol=1e-6, rtol=0)


def test_a_mistyped_command_names_the_nearest(capsys):
    assert main(["trian"]) == 2
    assert "there is no command 'trian'. Did you mean 'train'?" in capsys.readouterr().err
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"sr-distill {sd.__version__}\n"


@pytest.mark.parametrize("case", ["plain", "distil", "perceptual", "photos"])
def test_options_to_begin_with(tmp_path, monkeypatch, capsys, case):
    monkeypatch.chdir(tmp_path)
    assert main(["init", case]) == 0
    options = load_options(tmp_path / f"{case}.yml")
    assert options.name == case
    assert remarks_on_options(options) == []
    assert main(["init", case]) == 2
    assert f"{case}.yml is there already" in capsys.readouterr().err
    text = (tmp_path / f"{case}.yml").read_text()
    assert text.count("#") > 15
    assert str(examples() / "options/schema.json") in text


@pytest.mark.parametrize(
    ("given", "known", "meant"),
    [
        ("l2", ["l1", "mse"], "mse"),
        ("psnr", ["psnr_rgb", "psnr_y"], "psnr_y"),
        ("chabonnier", ["charbonnier"], "charbonnier"),
    ],
)
def test_what_the_field_calls_otherwise_is_found(given, known, meant):
    assert did_you_mean(given, known) == f" Did you mean '{meant}'?"


def test_a_number_with_an_exponent_is_a_number(tmp_path):
    path = tmp_path / "o.yml"
    path.write_text(yaml.safe_dump(MINIMAL))
    options = load_options(path, ["train.total_steps=1e3", "optimizer.learning_rate=1e-4", "losses.0.weight=2E0"])
    assert (options.train.total_steps, options.optimizer.learning_rate, options.losses[0].weight) == (1000, 1e-4, 2)
    with pytest.raises(UserError, match=r"train\.total_steps"):
        load_options(path, ["train.total_steps=1e-3"])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["schedule.warmup=10"], "schedule.warmup is 10 steps and the run has 10: the learning rate never comes to"),
        (["schedule={type: multistep, milestones: [5, 10]}"], "schedule.milestones 10: the run ends at step 10"),
        (["validation={sets: [embedded], every: 11}"], "validation.every is 11"),
        (["losses=[{type: l1}, {type: mse, schedule: {start: 10}}]"], "mse_sr_hr starts at step 10"),
        (
            ["losses=[{type: l1}, {type: mse, schedule: {start: 5, warmup: 6}}]"],
            "rises over 6 steps and is there for 5",
        ),
        (["losses=[{type: l1}, {type: mse, schedule: {stop: 11}}]"], "stops at step 11"),
        (["losses=[{type: l1}, {type: mse, weight: 0}]"], "mse_sr_hr has weight 0"),
    ],
)
def test_options_that_do_not_go_together_are_said(tmp_path, overrides, said):
    path = tmp_path / "o.yml"
    path.write_text(yaml.safe_dump(MINIMAL))
    assert remarks_on_options(load_options(path)) == []
    (remark,) = remarks_on_options(load_options(path, overrides))
    assert said in remark


def test_a_loss_that_needs_a_larger_batch_is_refused_before_anything_is_done(tmp_path):
    path = tmp_path / "o.yml"
    path.write_text(yaml.safe_dump(MINIMAL))
    rkd = ["teacher={model: x.pth}", "losses=[{type: l1}, {type: rkd}]"]
    with pytest.raises(
        UserError, match="rkd_features compares at least 3 images with each other, and data.batch_size is 2"
    ):
        load_options(path, [*rkd, "data.batch_size=2"])
    load_options(path, [*rkd, "data.batch_size=3"])


def test_what_a_killed_writer_left_is_removed_by_the_next_and_nothing_else(tmp_path, monkeypatch):
    code = f"""
import os
from pathlib import Path
from sr_distill.files import atomic_path
with atomic_path(Path({str(tmp_path / "a.txt")!r})) as temporary:
    temporary.write_text("half")
    os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 9
    (left,) = tmp_path.iterdir()
    monkeypatch.setattr("sr_distill.files._YOUNG", 0)
    with atomic_path(tmp_path / "b.txt") as held:  # of a writer that lives
        held.write_text("more")
        assert not left.exists()
        from sr_distill.files import _remove_abandoned

        _remove_abandoned.cache_clear()
        with atomic_path(tmp_path / "c.txt") as other:
            other.write_text("c")
        assert held.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.txt", "c.txt"]


def test_sigterm_leaves_nothing_half_written(tmp_path):
    code = f"""
import os, signal
from pathlib import Path
from sr_distill.cli.common import run_command
from sr_distill.files import atomic_path
def main(arguments):
    with atomic_path(Path({str(tmp_path / "a.txt")!r})) as temporary:
        temporary.write_text("half")
        os.kill(os.getpid(), signal.SIGTERM)
run_command(main, [])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 143, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_notebook_runs(tmp_path, monkeypatch):
    """Every cell, in its order, and what the page shows of its numbers."""
    monkeypatch.chdir(tmp_path)
    cells = json.loads((ROOT / "docs/api.ipynb").read_text())["cells"]
    names: dict = {}
    for cell in [cell for cell in cells if cell["cell_type"] == "code"]:
        exec("".join(cell["source"]), names)
    shown = "".join(
        "".join(out["data"]["text/plain"]) for cell in cells for out in cell.get("outputs", []) if "data" in out
    )
    assert f"{sd.evaluate(names['model'], 'embedded', ['psnr_y'])['embedded']['psnr_y']:.3f}" in shown
    assert str(names["large"].size) in shown
    assert (tmp_path / "experiments/first/student.safetensors").exists()


def test_a_model_may_be_the_folder_of_a_run(tmp_path):
    model = sd.open_model(STUDENT)
    with pytest.raises(UserError, match=r"neither student\.safetensors nor last\.safetensors"):
        sd.open_model(tmp_path)
    sd.save_model(model, tmp_path / "last.safetensors")
    assert sd.open_model(tmp_path).spec.name == model.spec.name
    save_checkpoint(tmp_path / "checkpoints", 5, {}, 1)
