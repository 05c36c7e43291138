"""Everything that runs on a GPU gives there what it gives on the CPU.

``SR_DISTILL_TEST_DEVICE`` names the device (cuda); ``cpu`` runs these tests without one, to see that they work.
"""

from __future__ import annotations

import dataclasses
import json
import os
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from sr_distill.cli import main
from sr_distill.contracts import Batch
from sr_distill.data import ResidentBatches, StepBatches
from sr_distill.data.images import read_rgb
from sr_distill.errors import UserError
from sr_distill.evaluate import METRICS, evaluate_set, make_metric, open_set
from sr_distill.evaluate.measures import ImagePair
from sr_distill.losses import LOSSES
from sr_distill.models import ARCHITECTURES, build_model, load_model
from sr_distill.options import validate
from sr_distill.options.optimisation import OptimizerOptions
from sr_distill.train import make_optimizer
from sr_distill.zoo import ZOO, open_model

from ..conftest import Objective, natural_image, small, write_image
from ..run.conftest import work  # noqa: F401
from ..run.helpers import assert_same, last_state, run_training, write_options
from ..unit.test_crops import _store

pytestmark = pytest.mark.gpu

CPU = torch.device("cpu")


@pytest.fixture
def device(monkeypatch):
    name = os.environ.get("SR_DISTILL_TEST_DEVICE", "cuda")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device here (SR_DISTILL_TEST_DEVICE=cpu runs this on the CPU)")
    # Full float32: with TF32, cuDNN's default, results agree to three digits only.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    return torch.device(name)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_networks(device, name):
    model, image = build_model(small(name), 2).eval(), torch.rand(2, 3, 17, 14)
    results = []
    for where in (CPU, device):
        model.to(where).zero_grad()
        output = model(image.to(where))
        output.square().mean().backward()
        results.append(
            [output.detach().cpu(), *(p.grad.cpu().clone() for p in model.parameters() if p.grad is not None)]
        )
    for on_cpu, on_device in zip(*results):
        torch.testing.assert_close(on_device, on_cpu, atol=2e-4, rtol=2e-3)


TERMS = [
    {"type": name, **where, **({"network": "squeeze"} if name == "lpips" else {})}
    for name, loss in LOSSES.items()
    for where in ({}, {"on": "decoded"}, {"on": "projected"})
    if not where or where["on"] in str(loss.model_fields["on"].annotation)
]


@pytest.mark.parametrize("color", ["rgb", "y"])
@pytest.mark.parametrize("term", TERMS, ids=lambda term: f"{term['type']}-{term.get('on', '')}")
def test_losses(device, term, color, random_backbones):
    student, teacher = build_model(small("mobile_sr", color=color), 2), build_model(small("edsr"), 2)
    objective = Objective([term], student, teacher)
    batch = Batch(torch.rand(4, 3, 24, 24), torch.rand(4, 3, 48, 48))
    results = []
    for where in (CPU, device):
        objective.task.to(where)
        for tapped in objective.teachers.values():
            tapped.to(where)
        objective.task.zero_grad()
        torch.manual_seed(0)
        total, _ = objective(batch.to(where))
        total.backward()
        results.append(
            [total.detach().cpu(), *(p.grad.cpu().clone() for p in student.parameters() if p.grad is not None)]
        )
        for remembering in objective.task.terms:  # some losses count their steps
            if hasattr(remembering.module, "steps"):
                remembering.module.steps = 0
    assert len(results[0]) > 1
    for on_cpu, on_device in zip(*results):
        scale = on_cpu.abs().max().item()
        torch.testing.assert_close(on_device, on_cpu, atol=2e-3 * scale + 1e-6, rtol=2e-3)


@pytest.mark.parametrize("name", [name for name in METRICS if not name.startswith("lpips")])
def test_metrics(device, name, random_backbones):
    sr, hr = (torch.from_numpy(natural_image(200, 208, seed)).permute(2, 0, 1)[None] for seed in (0, 1))
    metric = make_metric(name, 4)
    on_device = metric.measure(ImagePair(sr.to(device), hr.to(device))).cpu()
    torch.testing.assert_close(on_device, metric.measure(ImagePair(sr, hr)), atol=1e-4, rtol=1e-6)


@pytest.mark.parametrize("kind", ["adam", "adamw", "muon", "soap"])
def test_optimizers(device, kind):
    walked = []
    for where in (CPU, device):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.PReLU(8), nn.Conv2d(8, 8, 3)).to(where)
        optimizer = make_optimizer(validate(OptimizerOptions, {"type": kind, "learning_rate": 1e-3}, "test"), net)
        for step in range(25):
            image = torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(step)).to(where)
            optimizer.zero_grad()
            (net(image) - image[:, :1, 2:-2, 2:-2]).square().mean().backward()
            optimizer.step()
        walked.append([p.detach().cpu() for p in net.parameters()])
    for on_cpu, on_device in zip(*walked):
        torch.testing.assert_close(on_device, on_cpu, atol=1e-3, rtol=1e-2)


def test_crops_that_are_cut_on_the_device(device):
    generator = np.random.default_rng(0)
    photos = [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((9, 7), (5, 12), (6, 6))]
    stored, resident = (
        kind(_store(*photos), 5, 40, seed=1) for kind in (StepBatches, partial(ResidentBatches, device=device))
    )
    for step in range(5):
        first, second = stored[step], resident[step].cut(resident[step].places.to(device))
        assert second.hr.device.type == device.type
        assert torch.equal(first.lr, second.lr.cpu())
        assert torch.equal(first.hr, second.hr.cpu())
        assert torch.equal(first.teacher_sr["one"], second.teacher_sr["one"].cpu())


def _home(device):
    return "cuda" if device.type == "cuda" else "cpu"


def _losses_of(work, name):  # noqa: F811
    lines = [json.loads(line) for line in (work / f"out/{name}/metrics.jsonl").read_text().splitlines()]
    return [line["total"] for line in lines if line["kind"] == "train"]


def test_a_run(device, work):  # noqa: F811
    """On the device it has the losses that it has on the CPU, with pairs here or there, and goes on as if nothing had been."""
    options = write_options(work)
    assert run_training(options, "name=cpu") == 0
    for name, home in (("stored", "cpu"), ("resident", _home(device))):
        assert run_training(options, f"name={name}", f"device={device}", f"data.device={home}") == 0
        assert _losses_of(work, name) == pytest.approx(_losses_of(work, "cpu"), rel=2e-3)
    assert_same(last_state(work, "stored")["students"], last_state(work, "resident")["students"], exact=False)
    there = [f"device={device}", f"data.device={_home(device)}", "name=cut"]
    assert run_training(options, *there) == 0
    (work / "out/cut/checkpoints/step_00000006.pt").unlink()
    assert run_training(options, *there, "--resume") == 0
    assert_same(last_state(work, "cut")["students"], last_state(work, "resident")["students"], exact=False)


@pytest.mark.parametrize("kind", ["soap", "muon"])
def test_recorded_steps(device, work, kind, capsys):  # noqa: F811
    """As CUDA graphs, and the same of a student that is compiled; each ends where a run that is not recorded does, also when it goes on."""
    if device.type == "cpu":
        pytest.skip("CUDA graphs need CUDA; recording is tested on the CPU elsewhere")
    options = write_options(work, validation=None)
    shared = [
        f"device={device}",
        "data.device=cuda",
        f"optimizer={{type: {kind}}}",
        "train.total_steps=40",
        "train.checkpoint_every=20",
    ]
    assert run_training(options, *shared, "name=plain") == 0
    for name, change in (("recorded", []), ("compiled", ["train.compile=true"])):
        assert run_training(options, *shared, f"name={name}", "train.cuda_graph=true", *change) == 0
        assert "cannot be recorded" not in "".join(capsys.readouterr())
        assert _losses_of(work, name) == pytest.approx(_losses_of(work, "plain"), rel=2e-3)
    (work / "out/recorded/checkpoints/step_00000040.pt").unlink()
    assert run_training(options, *shared, "name=recorded", "train.cuda_graph=true", "--resume") == 0
    assert _losses_of(work, "recorded")[:20] == pytest.approx(_losses_of(work, "plain"), rel=2e-3)


@pytest.mark.parametrize("change", ["train.precision=bf16", "train.compile=true", "train.channels_last=false"])
def test_ways_of_running(device, work, change):  # noqa: F811
    if change.startswith("train.compile") and device.type == "cpu":
        pytest.skip("compiling is tested on the CPU elsewhere")
    options = write_options(work)
    assert run_training(options, "name=cpu") == 0
    assert run_training(options, "name=there", f"device={device}", change) == 0
    assert _losses_of(work, "there") == pytest.approx(_losses_of(work, "cpu"), rel=2e-2)


def test_upscaling_in_tiles(device, tmp_path):
    photo = write_image(tmp_path / "photo.png", natural_image(150, 130))
    outputs = []
    for where, tile, precision in (("cpu", "0", "fp32"), (str(device), "64", "fp32"), (str(device), "64", "auto")):
        out = tmp_path / f"{where}_{tile}_{precision}"
        arguments = [
            "-i",
            str(photo),
            "-o",
            str(out),
            "--model",
            "mobile_sr_tiny_x4",
            "--device",
            where,
            "--tile",
            tile,
            "--precision",
            precision,
        ]
        assert main(["inference", *arguments]) == 0
        (image,) = out.glob("*.png")
        outputs.append(np.asarray(read_rgb(image)).astype(int))
    assert np.abs(outputs[0] - outputs[1]).max() <= 1
    assert np.abs(outputs[0] - outputs[2]).max() <= 2  # half precision on a GPU


CHECKPOINTS = [
    ("rlfn_x4.pth", 4), ("hit_srf_x4.pth", 4), ("IMDN_x3.pth", 3), ("PANx2_DF2K.pth", 2), ("carn_m.pth", 2),
    ("rfdn_x4.pth", 4), ("efdn_x4.pth", 4), ("bsrn_x4.pth", 4), ("craft_x4.pth", 4), ("rlfn_x2.pth", 2),
]  # fmt: skip


@pytest.mark.parametrize(("name", "scale"), [*CHECKPOINTS, *((name, 4) for name in ZOO if name.endswith("_x4"))])
def test_evaluation_of_checkpoints(device, data_root, name, scale):
    """PSNR to 0.001 dB, SSIM and LPIPS as on the CPU, for those of the checkpoints that are there."""
    if name in ZOO:
        model = open_model(name)
    else:
        path = data_root / "weights" / name
        if not path.exists():
            pytest.skip(f"{path} is not there")
        model = load_model(path, scale)
    metrics = [make_metric(metric, scale) for metric in ("psnr_y", "ssim_y")]
    try:
        lpips = make_metric("lpips_squeeze", scale)
        lpips.measure(ImagePair(*(torch.zeros(1, 3, 64, 64, dtype=torch.uint8) for _ in range(2))))
        metrics.append(lpips)
    except UserError:
        pass  # its backbone is not there
    benchmark = open_set("Set5", scale, data_root)
    benchmark = dataclasses.replace(benchmark, images=benchmark.images[: 2 if model.num_parameters > 600_000 else 5])
    on_cpu, on_device = (evaluate_set(model, benchmark, where, metrics, luma_output=True) for where in (CPU, device))
    assert not on_device.problems
    for first, second in zip(on_cpu.scores, on_device.scores):
        for label, value in first.values.items():
            assert second.values[label] == pytest.approx(value, abs=1e-3 if label.startswith("psnr") else 1e-5), label
