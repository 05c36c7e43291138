"""The first steps of a run against a plain loop that is written out here."""

from __future__ import annotations

import contextlib
import json
import math

import pytest
import torch
import torch.nn.functional as F
import yaml
from accelerate.utils import set_seed

from sr_distill.data import StepBatches, luma
from sr_distill.features import lpips_network
from sr_distill.models import load_model
from sr_distill.options import load_options
from sr_distill.train import Trainer, build_run, make_accelerator

from .helpers import last_state, run_training, write_options

pytestmark = pytest.mark.run

STEPS = 5
RGB = {"type": "mobile_sr", "num_feat": 8, "num_block": 2}
FITNET = {"type": "fitnet", "weight": 0.3}


def _amplitude(sr, target):
    spectra = [torch.fft.rfft2(x, norm="ortho") for x in (sr, target)]
    return 0.5 * (spectra[0].abs() - spectra[1].abs()).abs().mean()


SECOND = {
    "l1": F.l1_loss,
    "mse": F.mse_loss,
    "charbonnier": lambda sr, target: torch.sqrt((sr - target) ** 2 + 1e-6).mean(),
    "frequency": _amplitude,
    "lpips": lambda sr, target: lpips_network("squeeze")(sr, target, normalize=True).mean(),
}
"""The second loss of a run, of each family that looks at the output, as other packages or a formula have it."""


def _into(maps, key):
    """A hook that keeps a copy of what a layer puts out."""
    return lambda module, inputs, output: maps.update({key: output.clone()})


def _plain_loop(work, name):
    """Totals, weights and averages of a run, by nothing but torch and the formulas; crops and start are the run's own."""
    options = load_options(work / f"out/{name}/options.yml")
    set_seed(options.seed)
    run = build_run(options)
    student, task = run.students["student"], run.task
    teacher = load_model(work / "teacher.safetensors").requires_grad_(False)
    store = run.open_store(torch.device("cpu"), print, quiet=True)
    batches = StepBatches(store, options.data.lr_size, options.data.batch_size, options.seed)
    adapter = next(iter(task.adapters.values()))[0].conv if len(task.adapters) else None
    trained = [*student.net.parameters(), *(adapter.parameters() if adapter else [])]
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[options.optimizer.type]
    optimizer = kind(trained, betas=tuple(options.optimizer.betas), weight_decay=options.optimizer.weight_decay, lr=1.0)
    averages, totals, rates = None, [], []
    student.train()
    for step in range(STEPS):
        batch = batches[step]
        lr, hr = (image.float() / 255 for image in (batch.lr, batch.hr))
        stored = {key: image.float() / 255 for key, image in batch.teacher_sr.items()}
        maps = {}
        half = options.train.precision == "bf16"
        with contextlib.ExitStack() as stack:
            if half:
                stack.enter_context(torch.autocast("cpu", torch.bfloat16))
            if adapter is not None:
                for key, net, path in (("s", student.net, "body.1"), ("t", teacher.net, "conv_after_body")):
                    stack.callback(net.get_submodule(path).register_forward_hook(_into(maps, key)).remove)
            image = luma(lr) if student.spec.color == "y" else lr
            sr = student.net(image).float()
            if adapter is not None:
                teacher.net(lr)
        if student.spec.color == "y":  # L1 of RGB in which chroma is the same: that of luma, in the full range
            hr, stored = (luma(x) * 255 / 219 for x in (hr, stored["teacher"]))
            sr, stored = sr * 255 / 219, {"teacher": stored}
        total = 0.5 * F.l1_loss(sr, hr) + 0.5 * SECOND[options.losses[1].type](sr, stored["teacher"])
        if adapter is not None:
            total = total + 0.3 * F.mse_loss(adapter(maps["s"].float()), maps["t"].float())
        done = step - 2
        rate = (
            2e-3 * (step + 1) / 2
            if step < 2
            else 2e-3 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done / (STEPS - 2))))
        )
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        total.backward()
        if options.optimizer.clip_grad_norm:
            torch.nn.utils.clip_grad_norm_(trained, options.optimizer.clip_grad_norm)
        optimizer.step()
        weights = [p.detach().clone() for p in student.net.parameters()]
        decay = min(options.train.ema, (1 + step) / (10 + step))
        averages = weights if step == 0 else [decay * a + (1 - decay) * w for a, w in zip(averages, weights)]
        totals.append(total.item())
        rates.append(rate)
    return totals, rates, weights, averages


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"student": RGB | {"color": "y"}},
        {"optimizer": {"betas": [0.5, 0.7]}},
        {"optimizer": {"weight_decay": 0.3}},
        {"optimizer": {"type": "adamw", "weight_decay": 0.3}},
        {"optimizer": {"clip_grad_norm": 0.01}},
        {"train": {"ema": 0.3}},
        {"train": {"ema": 0.0}},
        {"train": {"precision": "bf16"}},
        {"train": {"precision": "bf16"}, "features": {"count": 1}},
        {"train": {"channels_last": False}},
        {"losses": {"type": "charbonnier"}},
        {"losses": {"type": "mse"}},
        {"losses": {"type": "frequency", "phase": 0.0}},
        {"losses": {"type": "lpips", "network": "squeeze"}},
        {"features": {"count": 1}},
        {"seed": 7},
    ],
    ids=lambda change: "-".join(f"{k}_{v}" for k, v in change.items()) or "as_it_is",
)
def test_five_steps(work, change, random_backbones):
    change = dict(change)
    second = {"type": "l1"} | change.pop("losses", {}) | {"against": "teacher", "weight": 0.5}
    losses = [{"type": "l1", "weight": 0.5}, second, *([FITNET] if "features" in change else [])]
    optimizer = {"type": "adam", "learning_rate": 2e-3} | change.pop("optimizer", {})
    train = {"total_steps": STEPS, "log_every": 1, "checkpoint_every": STEPS} | change.pop("train", {})
    schedule = {"type": "cosine", "warmup": 2, "min_factor": 0.1}
    tree = {"student": RGB, "validation": None, "losses": losses, "optimizer": optimizer, "train": train}
    assert run_training(write_options(work, **tree | change, schedule=schedule), "name=golden") == 0
    lines = [json.loads(line) for line in (work / "out/golden/metrics.jsonl").read_text().splitlines()]
    totals, rates, weights, averages = _plain_loop(work, "golden")
    assert [line["total"] for line in lines] == pytest.approx(totals, rel=1e-3 if "precision" in train else 1e-4)
    assert [line["learning_rate"] for line in lines] == pytest.approx(rates)
    state = last_state(work, "golden")
    saved = [v for k, v in state["students"]["student"].items() if k.startswith("net.")]
    averaged = [v for k, v in state["averages"]["student"].items() if k.startswith("module.net.")]
    assert len(saved) == len(weights)
    for got, expected in [*zip(saved, weights), *zip(averaged, averages)]:
        # Adam makes a whole step of a gradient near zero, whose sign is rounding's: on some processors a weight in a thousand differs.
        if train.get("precision") == "bf16":
            assert (got - expected).abs().mean() < 1e-4
            continue
        far = (got - expected).abs() > 5e-6 + 1e-4 * expected.abs()
        assert far.float().mean() < 0.002
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def _trainer(work, **train):
    options = write_options(work, validation=None, losses=[{"type": "l1"}], teacher=None)
    tree = yaml.safe_load(options.read_text())
    tree["train"] |= train
    options.write_text(yaml.safe_dump(tree))
    loaded = load_options(options)
    run = build_run(loaded)
    accelerator = make_accelerator(loaded, run.task.has_idle_weights)
    return Trainer(run, None, run.open_store(torch.device("cpu"), print, quiet=True), accelerator), run


def test_bf16_reaches_the_networks(work):
    trainer, run = _trainer(work, precision="bf16")
    seen = []
    run.students["student"].net.body[0][0].register_forward_hook(lambda m, i, o: seen.append(o.dtype))
    trainer._step(trainer.batches[0])
    assert seen == [torch.bfloat16]


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_layout_reaches_weights_and_images(work, channels_last):
    trainer, run = _trainer(work, channels_last=channels_last)
    seen = []
    net = run.students["student"].net
    net.register_forward_pre_hook(lambda m, i: seen.append(i[0]))
    trainer._step(trainer.batches[0])
    for tensor in (seen[0], net.head[0].expand, trainer.averages["student"].module.net.head[0].expand):
        assert tensor.is_contiguous(memory_format=torch.channels_last) == channels_last


def test_compile_reaches_the_student(work, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, *a, **k: compiled.append(self))
    _, run = _trainer(work, compile=True)
    assert compiled == [run.students["student"].net]
