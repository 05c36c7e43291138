"""Train a student, with or without a teacher."""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from accelerate import Accelerator
from accelerate.utils import set_seed

from ..console import progress_bar
from ..data import PairStore, open_pairs
from ..errors import UserError
from ..evaluate import default_metrics, evaluate_set, open_set
from ..files import data_root
from ..infer import WholeOutputs
from ..models import SRModel
from ..options import RunOptions, load_options
from ..train import Interrupted, Run, Trainer, build_run, make_accelerator, open_run
from ..train.loop import Validate
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
        print(stopped, file=sys.stderr)
        return 130


def _train(options: RunOptions, resume: bool) -> int:
    set_seed(options.seed)
    run = build_run(options)
    accelerator = make_accelerator(options, run.task.rests)
    say = functools.partial(accelerator.print, flush=True)
    validate = _validation(options, accelerator.device)
    with accelerator.main_process_first():
        folder, checkpoint, said = open_run(options, resume or not accelerator.is_main_process)
    store = _open_store(run, accelerator)
    trainer = Trainer(run, folder, store, accelerator, validate)
    for line in said:
        say(line)
    if checkpoint is not None:
        trainer.resume(checkpoint)
        say(f"resuming from {checkpoint} (step {trainer.progress.step}).")
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


def _open_store(run: Run, accelerator: Accelerator) -> PairStore:
    options, data = run.options, run.options.data
    accelerator.print("reading training photos ...", flush=True)
    store = open_pairs(data.train, options.scale, data.lr_size, Path(data.cache_dir), data.on_unreadable)
    for reason in store.skipped:
        accelerator.print(f"skipped: {reason}")
    for name, tapped in run.teachers.items():
        teacher = tapped.teacher
        output_is_compared = any(not term.reads_maps and term.looks_at(name) for term in options.losses)
        if options.all_teachers[name].cache and output_is_compared:
            outputs = WholeOutputs(teacher, accelerator.device)
            bar = functools.partial(
                progress_bar, desc=f"outputs of {name}", unit="image", disable=not accelerator.is_main_process
            )
            tiled = store.add_teacher(name, teacher.key, outputs.whole, bar, outputs.in_tiles)
            if tiled:
                accelerator.print(
                    f"memory on {accelerator.device} does not suffice for {tiled} of {len(store.names)} images in one piece: "
                    f"the outputs of {name} ({teacher.spec.name}) were made {outputs.in_tiles()[0]} pixels for them."
                )
    return store


class _Stopped(Exception):
    """Somebody asked to stop in the middle of a validation."""


def _validation(options: RunOptions, device: torch.device) -> Validate | None:
    """A function that measures a student, with everything it needs opened and checked before training starts."""
    if options.validation is None:
        return None
    benchmark = open_set(options.validation.set, options.scale, data_root())
    psnr, ssim = (metric.label for metric in default_metrics(options.scale))

    def validate(model: SRModel, stopped: Callable[[], bool]) -> dict[str, float] | None:
        def heed(name: str, sr: Tensor | None) -> None:
            if stopped():
                raise _Stopped

        try:
            result = evaluate_set(model, benchmark, device, on_image=heed)
        except _Stopped:
            return None
        if result.problems:
            raise UserError(f"validation on {benchmark.name}: " + " ".join(result.problems))
        mean = result.mean(psnr)
        return {psnr: float("inf") if mean is None else mean, ssim: result.mean(ssim) or 0.0}

    return validate


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def entry() -> int:
    """Entry point of scripts/train.py."""
    return run_command(main)
