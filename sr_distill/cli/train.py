"""Train a student, with or without a teacher."""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable, Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor

from ..data import PairStore
from ..devices import keep_freed_memory, process_share
from ..errors import UserError
from ..evaluate import evaluate_set, make_metric, open_set
from ..files import data_root
from ..models import SRModel
from ..options import RunOptions, load_options
from ..train import Interrupted, Run, Trainer, Validation, build_run, make_accelerator, open_run
from .common import run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """``train.py -opt FILE [key.path=value ...] [--resume]``."""
    parser = argparse.ArgumentParser(
        prog="train", description="Train a student; with a teacher in the options, distil it."
    )
    parser.add_argument("-opt", "--options", required=True, metavar="FILE", help="options of the run (YAML)")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="options that differ from the file")
    parser.add_argument("--resume", action="store_true", help="continue the run from its last checkpoint")
    args = parser.parse_intermixed_args(arguments)
    options = load_options(args.options, args.overrides)
    try:
        return _train(options, args.resume)
    except Interrupted as stopped:
        if process_share()[0] == 0:
            print(stopped, file=sys.stderr)
        return 130


def _train(options: RunOptions, resume: bool) -> int:
    set_seed(options.seed)
    if options.train.threads is not None:
        torch.set_num_threads(options.train.threads)
    run = build_run(options)
    accelerator = make_accelerator(options, run.task.has_idle_weights)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    say = functools.partial(accelerator.print, flush=True)
    validate = _validation(options, accelerator.device)
    with accelerator.main_process_first():
        folder, checkpoint, said = open_run(options, resume or not accelerator.is_main_process)
    say("reading training photos ...")
    store = run.open_store(accelerator.device, say, quiet=not accelerator.is_main_process)
    trainer = Trainer(run, folder, store, accelerator, validate)
    for line in said:
        say(line)
    if checkpoint is not None:
        for line in trainer.resume(checkpoint):
            say(line)
        say(f"resuming from {checkpoint} (step {trainer.progress.step}).")
    elif run.not_taken:
        say(f"starts from {options.init_from} but for what has another shape there: {', '.join(run.not_taken)}.")
    _introduce(run, store, accelerator)
    if trainer.is_done:
        say(f"nothing to do: step {trainer.progress.step} of {options.train.total_steps} is done.")
        return 0
    started = time.perf_counter()
    progress = trainer.train()
    say(f"done: {progress.step} steps in {_duration(time.perf_counter() - started)}.")
    for name in run.students:
        best = progress.best.get(name)
        said_best = "" if best is None else f", best in validation: {best:.3f} at step {progress.best_step[name]}"
        say(f"The {name.replace('_', ' ')}: {folder.trained(name)}{said_best}")
    return 0


def _introduce(run: Run, store: PairStore, accelerator: Accelerator) -> None:
    """Say what is trained, from what, on what."""
    options, say = run.options, functools.partial(accelerator.print, flush=True)
    networks = run.students.values()
    models = " and ".join(f"{m.spec.name} x{options.scale}, {m.num_parameters:,} parameters" for m in networks)
    sources = " and ".join(teacher.model for teacher in options.all_teachers.values())
    origin = f"distilled from {sources}" if sources else "no teacher"
    say(f"{options.name}: {models}, {origin}; {len(store.names)} photos; on {accelerator.device}.")
    for link, pairs in run.task.pairs.items():
        between = "" if len(run.students) + len(run.teachers) <= 2 else f" ({link.student} from {link.source})"
        for pair in pairs:
            say(f"compares features of {pair}{between}")


class _Stopped(Exception):
    """Somebody asked to stop in the middle of a validation."""


def _validation(options: RunOptions, device: torch.device) -> Validation | None:
    """How students are measured, with everything it needs opened and checked before training starts."""
    if options.validation is None:
        return None
    benchmark = open_set(options.validation.set, options.scale, data_root())
    metrics = [make_metric(metric, options.scale) for metric in options.validation.metrics]

    def measure(model: SRModel, stopped: Callable[[], bool]) -> dict[str, float] | None:
        def heed(name: str, sr: Tensor | None) -> None:
            if stopped():
                raise _Stopped

        try:
            result = evaluate_set(model, benchmark, device, metrics, on_image=heed)
        except _Stopped:
            return None
        if result.problems:
            raise UserError(f"validation on {benchmark.name}: " + " ".join(result.problems))
        means = {metric.label: result.mean(metric.label) for metric in metrics}
        return {label: float("inf") if mean is None else mean for label, mean in means.items()}

    return Validation(f"{metrics[0].label} on {benchmark.name}", measure, metrics[0].higher_is_better)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def entry() -> int:
    """Entry point of scripts/train.py."""
    return run_command(main)
