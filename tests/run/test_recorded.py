"""Steps that are recorded and replayed, by a recorder on the CPU that keeps the rules of a CUDA graph."""

from __future__ import annotations

import pytest
import torch

from sr_distill.data import ResidentBatches
from sr_distill.losses import LOSSES
from sr_distill.options import load_options
from sr_distill.train import Trainer, build_run, make_accelerator, recorded

from .. import tape
from .helpers import assert_same, write_options

pytestmark = pytest.mark.run

TEACHER, PEERS = "{type: l1, against: teacher}", "{type: l1, against: peers, weight: 0.1}"
ON_IMAGES = [name for name, loss in LOSSES.items() if "'sr'" in str(loss.model_fields["on"].annotation)]


def _walk(options, steps, replayed, monkeypatch):
    """State after some steps, what was logged of each, and how many were replayed."""
    replays = []

    def recording(step):
        replay = tape.recording(step)
        return lambda: replays.append(1) or replay()

    monkeypatch.setattr(recorded, "recording", recording)
    options = options.model_copy(update={"train": options.train.model_copy(update={"cuda_graph": replayed})})
    torch.manual_seed(options.seed)
    run = build_run(options)
    store = run.open_store(torch.device("cpu"), print, quiet=True)
    trainer = Trainer(run, None, store, make_accelerator(options, run.task.has_idle_weights))
    data = options.data
    trainer.batches = ResidentBatches(store, data.lr_size, data.batch_size, options.seed, device=torch.device("cpu"))
    for _ in range(steps):
        trainer.take_step()
    state = {
        "students": {name: student.state_dict() for name, student in run.students.items()},
        "averages": {name: average.state_dict() for name, average in trainer.averages.items()},
        "optimizer": trainer.optimizer.state_dict()["state"],
        "logged": torch.stack(trainer._recent._values),
    }
    return state, len(replays)


def _compare(options, monkeypatch, steps, replays):
    plain, none = _walk(options, steps, False, monkeypatch)
    replayed, count = _walk(options, steps, True, monkeypatch)
    assert (none, count) == (0, replays)
    assert_same(replayed, plain, exact=False)


@pytest.mark.parametrize(
    ("overrides", "replays"),
    [
        (["optimizer={type: soap}"], 27),  # the 1st, the 2nd and the first one that turns bases are taken as they are
        (["optimizer={type: soap, precondition_every: 1, weight_decay: 0.1}"], 28),
        (["optimizer={type: muon, weight_decay: 0.1, clip_grad_norm: 0.01}", "train.ema=0"], 28),
        (["peers=[{type: ecbsr, num_feat: 8, num_block: 1}]", f"losses=[{TEACHER}, {PEERS}]", "train.ema=0.5"], 27),
        (["train.precision=bf16", "student.color=y"], 27),
    ],
)
def test_replayed_steps_end_where_others_do(work, monkeypatch, overrides, replays):
    _compare(load_options(write_options(work), ["schedule={warmup: 7}", *overrides]), monkeypatch, 30, replays)


@pytest.mark.parametrize("name", ON_IMAGES)
def test_every_loss_on_images_can_be_recorded(work, monkeypatch, random_backbones, name):
    losses = [{"type": "l1", "against": "teacher"}, {"type": name, "weight": 0.1, "name": "other"}]
    _compare(load_options(write_options(work, losses=losses)), monkeypatch, 6, 4)


def test_what_cannot_be_recorded_is_said_and_taken_one_by_one(work, monkeypatch, capsys):
    options = load_options(write_options(work))
    plain, _ = _walk(options, 30, False, monkeypatch)

    def refuse(step):
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(tape, "recording", refuse)
    taken, replays = _walk(options, 30, True, monkeypatch)
    assert_same(taken, plain, exact=False)
    assert replays == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "cannot be recorded" in line]
    assert len(said) == 2  # usual steps, and those that turn bases
    assert "(operation not permitted when stream is capturing)" in said[0]
