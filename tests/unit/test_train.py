"""Schedules, averages, checkpoints, logs and run folders."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import threading

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from sr_distill.errors import UserError
from sr_distill.files import atomic_path, find, write_text
from sr_distill.options import LossOptions, RunOptions, validate
from sr_distill.options.optimisation import ScheduleOptions
from sr_distill.train import clear_leftovers, locked, open_run
from sr_distill.train.average import Average
from sr_distill.train.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from sr_distill.train.log import MetricsLog
from sr_distill.train.schedule import learning_rate_at, weight_at
from sr_distill.train.stop import StopAgreement, StopRequest

from .test_options import MINIMAL


def _rates(schedule, total, base=0.1):
    return [learning_rate_at(step, base, total, schedule) for step in range(total)]


def test_cosine_equals_torch():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40, eta_min=0.001)
    for rate in _rates(ScheduleOptions(type="cosine", min_factor=0.01), 40):
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()


def test_multistep_equals_torch():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    reference = torch.optim.lr_scheduler.MultiStepLR(optimizer, [5, 12], gamma=0.2)
    for rate in _rates(ScheduleOptions(type="multistep", milestones=[5, 12], gamma=0.2), 20):
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()


def test_wsd_is_constant_and_then_falls_in_its_last_share():
    schedule = ScheduleOptions(type="wsd", warmup=2, decay=0.5, min_factor=0.1)
    assert _rates(schedule, 10) == pytest.approx([0.05, 0.1, 0.1, 0.1, 0.1, 0.1, 0.082, 0.064, 0.046, 0.028])
    assert _rates(schedule, 20)[:10] == pytest.approx(_rates(schedule, 12)[:6] + [0.1] * 4)  # a longer run begins alike


@pytest.mark.parametrize(
    "change", [{"decay": 0.5}, {"gamma": 0.1}, {"milestones": [3]}, {"type": "constant", "min_factor": 0.5}]
)
def test_options_that_a_schedule_does_not_have_are_refused(change):
    with pytest.raises(UserError, match="has no effect with type"):
        validate(ScheduleOptions, change, "test")


def test_warm_up_rises_to_the_base_and_every_schedule_stays_positive():
    for kind in ("constant", "cosine"):
        rates = _rates(ScheduleOptions(type=kind, warmup=4), 20)
        assert rates[:4] == pytest.approx([0.025, 0.05, 0.075, 0.1])
        assert rates[4] == pytest.approx(0.1)
        assert min(rates) > 0
    assert learning_rate_at(0, 0.1, 3, ScheduleOptions(warmup=10)) == pytest.approx(0.01)


def _term(**schedule):
    return validate(LossOptions, {"type": "l1", "weight": 2.0, "schedule": schedule or None}, "test")


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({}, [2, 2, 2, 2, 2, 2, 2, 2]),
        ({"start": 2, "stop": 5}, [0, 0, 2, 2, 2, 0, 0, 0]),
        ({"warmup": 4}, [0.5, 1, 1.5, 2, 2, 2, 2, 2]),
        ({"decay_to": 0.0}, [2, 1.75, 1.5, 1.25, 1, 0.75, 0.5, 0.25]),
        ({"decay_to": 0.5, "stop": 4}, [2, 1.75, 1.5, 1.25, 0, 0, 0, 0]),
        ({"warmup": 2, "start": 1, "decay_to": 2.0, "stop": 7}, [0, 1, 2, 2, 2.5, 3, 3.5, 0]),
        ({"decay": "cosine", "decay_to": 0.0}, [1 + math.cos(math.pi * k / 8) for k in range(8)]),
    ],
)
def test_weights_follow_their_schedule(schedule, expected):
    assert [weight_at(step, _term(**schedule), 8) for step in range(8)] == pytest.approx(expected)


def test_a_schedule_that_ends_before_it_begins_is_refused():
    with pytest.raises(UserError, match=r"stop \(3\) must be after start \(3\)"):
        _term(start=3, stop=3)


def test_averages_follow_their_formula():
    module = nn.Conv2d(2, 3, 1)
    average = Average(module, 0.9)
    expected = None
    for update in range(200):
        with torch.no_grad():
            module.weight.add_(torch.randn_like(module.weight))
        average.update_parameters(module)
        decay = min(0.9, (1 + update) / (10 + update))
        weight = module.weight.detach()
        expected = weight.clone() if expected is None else decay * expected + (1 - decay) * weight
        torch.testing.assert_close(average.module.weight, expected)


def test_averages_equal_torchs_after_the_warm_up():
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    module = nn.Conv2d(2, 3, 1)
    average, reference = Average(module, 0.9), AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for one in (average, reference):
        one.update_parameters(module)  # the first one copies
    average.n_averaged.fill_(10**6)  # past the warm-up
    for _ in range(5):
        with torch.no_grad():
            module.weight.add_(torch.randn_like(module.weight))
        average.update_parameters(module)
        reference.update_parameters(module)
    torch.testing.assert_close(average.module.weight, reference.module.weight)


def test_an_average_is_frozen_copies_buffers_and_can_be_off():
    module = nn.BatchNorm2d(2)
    average, off = Average(module, 0.999), Average(module, 0.0)
    for value in (1.0, 3.0):
        module(torch.randn(4, 2, 3, 3))
        with torch.no_grad():
            module.weight.fill_(value)
        average.update_parameters(module)
        off.update_parameters(module)
    assert average.module.weight[0].item() == pytest.approx(1 + (1 - 2 / 11) * 2)
    assert off.module.weight[0].item() == 3.0
    assert torch.equal(average.module.running_mean, module.running_mean)
    assert not average.module.training
    assert not any(parameter.requires_grad for parameter in average.module.parameters())
    again = Average(module, 0.999)
    again.load_state_dict(average.state_dict())
    assert again.n_averaged == 2
    assert torch.equal(again.module.weight, average.module.weight)


def test_checkpoints_come_back_and_the_last_are_kept(tmp_path):
    assert latest_checkpoint(tmp_path / "none") is None
    for step in (1, 20, 300):
        save_checkpoint(tmp_path, step, {"step": step, "x": torch.ones(2)}, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000020.pt", "step_00000300.pt"]
    assert load_checkpoint(latest_checkpoint(tmp_path))["step"] == 300


def test_a_damaged_checkpoint_is_named(tmp_path):
    path = save_checkpoint(tmp_path, 1, {"x": torch.ones(100)}, keep=1)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError, match=r"step_00000001\.pt cannot be read .* delete it to resume from the one before"):
        load_checkpoint(path)


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "before")
    with pytest.raises(UserError, match=r"cannot write .*file\.txt: No space left"), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as temporary:
        raise KeyboardInterrupt
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_files_can_be_read_by_others(tmp_path):
    write_text(tmp_path / "f", "x")
    (tmp_path / "plain").write_text("x")
    assert (tmp_path / "f").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_find_looks_below_the_data_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "root/train").mkdir(parents=True)
    monkeypatch.setenv("SR_DISTILL_DATA", str(tmp_path / "root"))
    assert find("train", "folder") == tmp_path / "root/train"
    (tmp_path / "train").mkdir()
    assert find("train", "folder").resolve() == tmp_path / "train"
    with pytest.raises(UserError, match="folder not found: none; looked for none, .*root/none"):
        find("none", "folder")
    monkeypatch.delenv("SR_DISTILL_DATA")
    with pytest.raises(UserError, match="SR_DISTILL_DATA is not set"):
        find("none", "folder")


def test_log_drops_what_lies_after_the_checkpoint(tmp_path):
    log = MetricsLog(tmp_path, 0)
    for step in (10, 20, 30):
        log.write(step, "train", {"total": step / 10, "worst": float("inf")})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "ki')  # a crash in the middle of a line
    log = MetricsLog(tmp_path, 20)
    log.write(30, "train", {"total": 7.0})
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["total"]) for line in lines] == [(10, 1.0), (20, 2.0), (30, 7.0)]
    assert lines[0]["worst"] is None
    assert {line["kind"] for line in lines} == {"train"}
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, pytest.approx(e.value)) for e in events.Scalars("train/total")] == [
        (10, 1.0),
        (20, 2.0),
        (30, 7.0),
    ]


def test_a_log_that_cannot_be_written_is_a_sentence(tmp_path, monkeypatch):
    log = MetricsLog(tmp_path, 0)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.open", full)
    with pytest.raises(UserError, match=r"cannot write .*metrics\.jsonl: No space left on device"):
        log.write(1, "train", {"total": 1.0})


def _options(tmp_path, **change):
    return validate(RunOptions, MINIMAL | {"output_dir": str(tmp_path)} | change, "test")


def _started(tmp_path, **change):
    """The folder of a run that was started with these options."""
    options = _options(tmp_path, **change)
    folder, *_ = open_run(options, resume=False)
    folder.write_options(options, 0)
    return folder


def test_a_run_folder_is_never_overwritten(tmp_path):
    folder, checkpoint, said = open_run(_options(tmp_path), resume=False)
    assert (folder.path, checkpoint, said) == (tmp_path / "test", None, [])
    assert not folder.path.exists()
    folder = _started(tmp_path)
    for leftover in ("metrics.jsonl", "initial.safetensors", "last_peer_1.safetensors"):
        (folder.path / leftover).touch()
    open_run(_options(tmp_path), resume=False)  # a run that never saved anything is no loss
    clear_leftovers(folder)
    assert list(folder.path.iterdir()) == []
    for name in ("mine.txt", "checkpoints/step_00000005.pt"):
        (folder.path / name).parent.mkdir(exist_ok=True)
        (folder.path / name).touch()
        with pytest.raises(UserError, match="is there already: continue it with --resume"):
            open_run(_options(tmp_path), resume=False)
        (folder.path / name).unlink()


def test_resume_finds_the_checkpoint_and_refuses_what_changed(tmp_path):
    with pytest.raises(UserError, match="nothing to resume"):
        open_run(_options(tmp_path), resume=True)
    rate = {"optimizer": {"learning_rate": 1e-3}}
    folder = _started(tmp_path, **rate)
    assert "no checkpoint yet" in open_run(_options(tmp_path, **rate), resume=True)[2][0]
    path = save_checkpoint(folder.checkpoints, 5, {}, 1)
    longer = {"train": {"total_steps": 99}, **rate}
    _, checkpoint, said = open_run(_options(tmp_path, **longer), resume=True)
    assert checkpoint == path
    assert ["at step 5 the learning rate jumps from 0.000505 to 0.000994" in line for line in said] == [True]
    folder = _started(tmp_path, name="steady", schedule={"type": "wsd"})
    save_checkpoint(folder.checkpoints, 5, {}, 1)
    longer = _options(tmp_path, name="steady", train={"total_steps": 99}, schedule={"type": "wsd"})
    assert open_run(longer, resume=True)[2] == []


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"losses": [{"type": "l1", "weight": 0.5}]}, "losses.0.weight"),
        ({"seed": 3}, "seed"),
        ({"optimizer": {"learning_rate": 0.3}}, "optimizer.learning_rate"),
        ({"data": MINIMAL["data"] | {"batch_size": 2}}, "data.batch_size"),
    ],
)
def test_what_changes_the_result_is_refused_unless_it_is_meant(tmp_path, change, key):
    folder = _started(tmp_path)
    save_checkpoint(folder.checkpoints, 5, {}, 1)
    options = _options(tmp_path, **change)
    with pytest.raises(UserError, match=rf"(?s){key} was .*--allow-changes {key}"):
        open_run(options, resume=True)
    for allowed in (key, key.split(".")[0]):
        assert key in open_run(options, resume=True, allowed=[allowed])[2][0]
    with pytest.raises(UserError):
        open_run(options, resume=True, allowed=["schedule"])
    folder.write_options(options, 5)
    assert sorted(path.name for path in folder.path.glob("*.yml")) == ["options.yml", "options_from_step_00000005.yml"]
    with pytest.raises(UserError):  # compared with the start, not with the last time
        open_run(options, resume=True)


def test_one_process_trains_in_a_folder_at_a_time(tmp_path):
    with locked(tmp_path / "run"):
        with pytest.raises(UserError, match=rf"process {os.getpid()} on .* trains there"), locked(tmp_path / "run"):
            pass
        assert (tmp_path / "run/running.json").exists()
    assert not (tmp_path / "run/running.json").exists()


def test_the_lock_of_a_process_that_is_gone_does_not_count(tmp_path):
    done = subprocess.Popen(["true"])
    done.wait()
    host = socket.gethostname()
    for owner in ({"host": host, "pid": done.pid, "since": 1.0}, {"host": host, "pid": os.getpid(), "since": 1.0}):
        (tmp_path / "running.json").write_text(json.dumps(owner))
        with locked(tmp_path):
            pass
    for owner in ('{"host": "elsewhere", "pid": 1, "since": 1.0}', "half a"):
        (tmp_path / "running.json").write_text(owner)
        with pytest.raises(UserError, match=r"if it is not running any more, delete .*running\.json"), locked(tmp_path):
            pass


def test_a_wsd_run_is_prolonged_from_before_its_decay(tmp_path):
    plan = {"schedule": {"type": "wsd", "decay": 0.5}}
    folder = _started(tmp_path, **plan, train={"total_steps": 20})
    for step in (4, 8, 10, 14, 16, 20):
        save_checkpoint(folder.checkpoints, step, {}, keep=2, spare=10)
    assert [path.name[-6:-3] for path in sorted(folder.checkpoints.iterdir())] == ["010", "016", "020"]
    same = open_run(_options(tmp_path, **plan, train={"total_steps": 20}), resume=True)
    assert same[1].name == "step_00000020.pt"
    _, checkpoint, said = open_run(_options(tmp_path, **plan, train={"total_steps": 80}), resume=True)
    assert (checkpoint.name, said) == ("step_00000010.pt", [])


def test_a_run_that_is_done_says_nothing_of_rates(tmp_path):
    folder = _started(tmp_path)
    save_checkpoint(folder.checkpoints, 10, {}, keep=2)
    assert open_run(_options(tmp_path, train={"total_steps": 4}), resume=True)[2] == []


class _Two:
    """Two processes, the other of which takes a millisecond a step and is never asked to stop."""

    num_processes, device = 2, torch.device("cpu")

    def gather(self, mine):
        return torch.cat([mine, torch.tensor([[0.0, 1e-3]])[:, : mine.shape[1]]])


def test_processes_agree_every_few_steps_and_where_other_steps_follow():
    request = StopRequest()
    agreement = StopAgreement(_Two(), request)
    assert not agreement.reached(1)
    request.asked = True
    answers = [agreement.reached(step) for step in range(2, 12)]
    assert answers.index(True) < 8  # steps of a millisecond so far, but the next may take a minute
    agreement = StopAgreement(_Two(), StopRequest())
    agreement.reached(1)
    agreement._request.asked = True
    assert agreement.reached(2, other_steps_follow=True)
    assert agreement.reached(3)


def test_resume_tells_which_weights_jump(tmp_path):
    fading = {"type": "l1", "name": "fades", "weight": 2.0, "schedule": {"decay_to": 0.0}}
    change = {"losses": [{"type": "l1"}, fading], "schedule": {"type": "constant"}}
    folder = _started(tmp_path, **change)
    save_checkpoint(folder.checkpoints, 5, {}, 1)
    said = open_run(_options(tmp_path, **change, train={"total_steps": 20}), resume=True)[2]
    assert said == ["with it, the weight of fades jumps from 1 to 1.5."]
    with pytest.raises(UserError, match="cannot resume .*student.num_feat was 16, is now 12"):
        open_run(_options(tmp_path, student={"type": "mobile_sr", "num_feat": 12}), resume=True)


def test_atomic_path_in_a_thread(tmp_path):
    threads = [threading.Thread(target=write_text, args=(tmp_path / "same", str(i) * 1000)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    text = (tmp_path / "same").read_text()
    assert len(set(text)) == 1
    assert len(text) == 1000


@pytest.mark.parametrize("length", [200, 201, 255])
def test_names_as_long_as_file_systems_take_them(tmp_path, length):
    path = tmp_path / ("ä" * ((length - 4) // 2) + "a" * (length % 2) + ".txt")
    assert len(os.fsencode(path.name)) == length
    with atomic_path(path) as temporary:
        temporary.write_text("text")
        assert temporary.suffix == ".txt"
    assert path.read_text() == "text"
