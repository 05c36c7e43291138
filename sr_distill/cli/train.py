"""Train a student, with or without a teacher."""

from __future__ import annotations

import argparse
import functools
import os
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, set_seed

from ..console import progress_bar
from ..data import PairStore, open_pairs
from ..devices import pick_device
from ..errors import UserError
from ..evaluate import evaluate_set, metric_names, open_set
from ..features import FeaturePair, TappedTeacher, choose_pairs
from ..files import data_root
from ..infer import upscale
from ..models import SRModel, Teacher, build_model
from ..options import RunOptions, load_options
from ..train import DistillationTask, Interrupted, Trainer, open_run
from ..train.loop import Validate
from ..zoo import open_model
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
    accelerator = _accelerator(options)
    say = functools.partial(accelerator.print, flush=True)
    set_seed(options.seed)
    student, teacher = _student(options), _teacher(options)
    pairs = choose_pairs(student, teacher.model, options.features) if teacher and options.uses_features else []
    task = DistillationTask(student, options.losses, pairs, options.features.adapter)
    validate = _validation(options, accelerator.device)
    with accelerator.main_process_first():
        folder, checkpoint, said = open_run(options, resume or not accelerator.is_main_process)
    with accelerator.main_process_first():
        store = _open_store(options, teacher, accelerator)
    trainer = Trainer(options, folder, task, _running_teacher(teacher, pairs, store), store, accelerator, validate)
    for line in said:
        say(line)
    if checkpoint is not None:
        trainer.resume(checkpoint)
        say(f"resuming from {checkpoint} (step {trainer.progress.step}).")
    say(
        f"{options.name}: {student.spec.name} x{options.scale}, {student.num_parameters:,} parameters, "
        f"{'distilled from ' + options.teacher.model if options.teacher else 'no teacher'}; {len(store.names)} photos; on {accelerator.device}."
    )
    for pair in pairs:
        say(f"compares features of {pair}")
    if trainer.progress.step >= options.train.total_steps:
        say(f"nothing to do: step {trainer.progress.step} of {options.train.total_steps} is done.")
        return 0
    started = time.perf_counter()
    progress = trainer.run()
    best = f"; best in validation: {progress.best:.3f} at step {progress.best_step}" if validate else ""
    say(
        f"done: {progress.step} steps in {_duration(time.perf_counter() - started)}{best}. The student: {folder.student}"
    )
    return 0


def _accelerator(options: RunOptions) -> Accelerator:
    """One accelerator for the run; a device named in the options is taken, processes started by a launcher choose their own."""
    device = pick_device(options.device)
    if options.device != "auto" and device.type != "cpu":
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(device)
    # The other processes wait while the first one stores the teacher's outputs, which can take longer than the usual 10 minutes.
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=24))
    accelerator = Accelerator(cpu=device.type == "cpu", kwargs_handlers=[patience])
    if options.data.batch_size % accelerator.num_processes:
        raise UserError(
            f"data.batch_size {options.data.batch_size} cannot be divided among {accelerator.num_processes} processes."
        )
    return accelerator


def _student(options: RunOptions) -> SRModel:
    student = build_model(options.student, options.scale)
    if options.init_from is not None:
        start = open_model(options.init_from, options.scale, options.student)
        if start.spec != student.spec:
            raise UserError(
                f"init_from: {options.init_from} is another network ({start.spec.architecture}) than student."
            )
        student.load_state_dict(start.state_dict())
    return student


def _teacher(options: RunOptions) -> Teacher | None:
    if options.teacher is None:
        return None
    model = open_model(options.teacher.model, options.scale, options.teacher.architecture)
    return Teacher(model, options.teacher.self_ensemble)


def _running_teacher(teacher: Teacher | None, pairs: list[FeaturePair], store: PairStore) -> TappedTeacher | None:
    """The teacher as it is needed in each step: not at all where its stored outputs are all that is looked at."""
    if teacher is None or (store.teacher is not None and not pairs):
        return None
    return TappedTeacher(teacher, [pair.teacher.path for pair in pairs])


def _open_store(options: RunOptions, teacher: Teacher | None, accelerator: Accelerator) -> PairStore:
    data = options.data
    accelerator.print("reading training photos ...", flush=True)
    store = open_pairs(data.train, options.scale, data.lr_size, Path(data.cache_dir), data.on_unreadable)
    for reason in store.skipped:
        accelerator.print(f"skipped: {reason}")
    if teacher is not None and options.teacher is not None and options.teacher.cache:
        run = functools.partial(upscale, teacher, device=accelerator.device)
        bar = functools.partial(
            progress_bar, desc="teacher's outputs", unit="image", disable=not accelerator.is_main_process
        )
        store.add_teacher(teacher.key, run, bar)
    return store


def _validation(options: RunOptions, device: torch.device) -> Validate | None:
    """A function that measures a student, with everything it needs opened and checked before training starts."""
    if options.validation is None:
        return None
    benchmark = open_set(options.validation.set, options.scale, data_root())
    psnr_name, ssim_name, _ = metric_names(options.scale)

    def validate(model: SRModel) -> dict[str, float]:
        result = evaluate_set(model, benchmark, device)
        if result.problems:
            raise UserError(f"validation on {benchmark.name}: " + " ".join(result.problems))
        psnr, ssim = result.mean("psnr"), result.mean("ssim")
        return {psnr_name: float("inf") if psnr is None else psnr, ssim_name: 0.0 if ssim is None else ssim}

    return validate


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def entry() -> int:
    """Entry point of scripts/train.py."""
    return run_command(main)
