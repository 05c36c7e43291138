"""What networks cost, and which to choose."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from sr_distill.cli import main
from sr_distill.errors import UserError
from sr_distill.evaluate import Profile, best_within, pareto_front, parse_budget, profile_model
from sr_distill.evaluate.profile import RUNTIMES, _count, measure_latency
from sr_distill.models import ARCHITECTURES, ModelSpec, SRModel, build_model, save_model

from ..conftest import architecture, natural_image, small, write_image

CPU = torch.device("cpu")


def test_counts_of_a_plain_network_are_those_by_hand():
    """mobile_sr x4 on 320x180: convolutions 3 -> 8, 8 -> 8 (2), 8 -> 48 of 5x5."""
    model = build_model(architecture(type="mobile_sr", num_feat=8, num_block=2), 4).eval()
    macs, activations, peak = _count(model.collapsed(), (180, 320))
    pixels = 180 * 320
    assert macs == pixels * (9 * (3 * 8 + 2 * 8 * 8) + 25 * 8 * 48)
    assert activations == pixels * (8 + 8 + 8 + 48)
    assert peak >= 4 * pixels * (48 + 48)  # the last convolution and what is added to it
    assert peak < 4 * pixels * 300


@pytest.mark.parametrize(("name", "published"), [("imdn", 40.9), ("rlfn", 29.8), ("pan", 28.2)])
def test_macs_are_those_of_the_papers(name, published):
    """Multi-adds for 1280x720 at x4, in G, as the papers of IMDN, RLFN and PAN give them."""
    macs, _, _ = _count(build_model(architecture(type=name), 4).eval(), (180, 320))
    assert macs / 1e9 == pytest.approx(published, abs=0.06)


class _Steps(nn.Module):
    def forward(self, x):
        a = x + 1
        b = a * 2
        del a
        return b[:, :, :1] + 3


def test_peak_memory_is_what_is_alive_at_once():
    _, _, peak = _count(SRModel(_Steps(), ModelSpec(name="t", scale=1)), (10, 20))
    assert 2 * 3 * 10 * 20 * 4 <= peak <= 2 * 3 * 10 * 20 * 4 + 3 * 20 * 4 * 2


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_network_is_profiled(name, monkeypatch, tmp_path):
    monkeypatch.setattr("sr_distill.evaluate.profile.FRAME", (64, 96))
    model = build_model(small(name), 2).eval()
    save_model(model, tmp_path / "m.safetensors")
    profile = profile_model(model, CPU, runs=2, file=tmp_path / "m.safetensors")
    assert profile.parameters == model.num_parameters
    assert min(profile.macs, profile.activations, profile.peak_memory, profile.latency_ms, profile.file_bytes) > 0
    assert next(model.parameters()).device == CPU
    assert len(profile.cells()) == len(Profile.HEADER)


def test_pareto_front():
    points = {"a": (1.0, 10.0), "b": (2.0, 9.0), "c": (2.0, 12.0), "d": (3.0, 12.0), "e": (0.5, 1.0), "f": (1.0, 10.0)}
    assert pareto_front(points) == ["e", "a", "f", "c"]
    assert pareto_front({}) == []


def test_the_best_within_budgets():
    profiles = {name: Profile(p, 1, 1, m, t, 0.1, "cpu", 10) for name, p, m, t in
                (("small", 10, 5_000_000, 3.0), ("middle", 20, 9_000_000, 6.0), ("large", 90, 2_000_000, 50.0))}  # fmt: skip
    quality = {"small": 28.0, "middle": 29.0, "large": 30.0}
    assert best_within(quality, profiles, {}) == "large"
    assert best_within(quality, profiles, {"latency_ms": 10}) == "middle"
    assert best_within(quality, profiles, {"latency_ms": 10, "memory_mb": 6}) == "small"
    assert best_within(quality, profiles, {"parameters": 5}) is None
    assert parse_budget("latency_ms=30") == ("latency_ms", 30.0)
    for wrong, expected in (
        ("latency=3", "Did you mean 'latency_ms'"),
        ("macs=x", "macs=NUMBER"),
        ("macs", "NUMBER"),
        ("macs=-1", "above 0"),
    ):
        with pytest.raises(UserError, match=expected):
            parse_budget(wrong)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Two students of different size, and an image."""
    monkeypatch.setattr("sr_distill.evaluate.profile.FRAME", (64, 96))
    write_image(tmp_path / "set/x.png", natural_image(64, 64))
    for width in (8, 16):
        model = build_model(architecture(type="mobile_sr", num_feat=width, num_block=1), 2)
        save_model(model, tmp_path / f"w{width}.safetensors")
    return tmp_path


def test_select_student(files, capsys):
    candidates = [str(files / "w8.safetensors"), f"wide={files / 'w16.safetensors'}"]
    arguments = ["--candidates", *candidates, "--datasets", str(files / "set"), "--device", "cpu", "--runs", "2"]
    out = files / "o.json"
    assert main(["select_student", *arguments, "--budget", "parameters=4000", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "Best within parameters <= 4000: w8." in said
    assert "Pareto front (psnr_y_b2 against parameters)" in said
    tree = json.loads(out.read_text())
    assert tree["best"] == "w8"
    assert tree["models"]["wide"]["parameters"] > 4000
    assert main(["select_student", *arguments, "--budget", "parameters=1"]) == 1
    assert "Best within parameters <= 1: none of them." in capsys.readouterr().out
    assert main(["select_student", *arguments, "--budget", "speed=1"]) == 2
    assert "there is no budget 'speed'" in capsys.readouterr().err


def test_profile_model(files, capsys):
    models = ["--model", str(files / "w8.safetensors"), "--teacher", str(files / "w16.safetensors")]
    arguments = [*models, "--runs", "2", "--runtime", "torchscript"]
    assert main(["profile_model", *arguments, "--device", "cpu", "--out", str(files / "p.json")]) == 0
    said = capsys.readouterr().out
    assert "MACs at 1280x720" in said
    assert "w16 over each of the others:" in said
    tree = json.loads((files / "p.json").read_text())
    ratio = tree["models"]["w16"]["macs"] / tree["models"]["w8"]["macs"]
    assert tree["teacher_over"]["w8"]["macs"] == pytest.approx(ratio)


@pytest.mark.parametrize("name", ["mobile_sr", "ecbsr", "fsrcnn", "rlfn"])
def test_torchscript_runs_what_torch_runs(name):
    model, lr = build_model(small(name), 2).eval(), torch.rand(1, 3, 24, 32)
    with torch.no_grad():
        torch.testing.assert_close(RUNTIMES["torchscript"](model, lr)(lr), model(lr))
    assert len(measure_latency(model, (24, 32), CPU, 2, "torchscript")) == 2


@pytest.mark.parametrize("command", [["profile_model", "--model"], ["select_student", "--candidates"]])
def test_at_least_one_pass_is_timed(command, files, capsys):
    with pytest.raises(SystemExit):
        main([*command, str(files / "w8.safetensors"), "--runs", "0"])
    assert "0 is not at least 1" in capsys.readouterr().err
