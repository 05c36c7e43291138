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
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, set_seed

from ..console import progress_bar
from ..data import PairStore, open_pairs
from ..devices import pick_device
from ..errors import UserError
from ..evaluate import default_metrics, evaluate_set, open_set
from ..features import TappedTeacher
from ..files import data_root
from ..infer import WholeOutputs
from ..models import SRModel, Teacher, build_model
from ..options import RunOptions, load_options
from ..train import DistillationTask, Interrupted, MutualTask, Trainer, build_task, open_run, tap_teacher
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
    students, teachers = _students(options), _teachers(options)
    task = build_task(options, students, {name: teacher.model for name, teacher in teachers.items()})
    validate = _validation(options, accelerator.device)
    with accelerator.main_process_first():
        folder, checkpoint, said = open_run(options, resume or not accelerator.is_main_process)
    store = _open_store(options, teachers, accelerator)
    running = _running_teachers(options, teachers, task, store)
    trainer = Trainer(options, folder, task, running, store, accelerator, validate)
    for line in said:
        say(line)
    if checkpoint is not None:
        trainer.resume(checkpoint)
        say(f"resuming from {checkpoint} (step {trainer.progress.step}).")
    models = " and ".join(f"{m.spec.name} x{options.scale}, {m.num_parameters:,} parameters" for m in students.values())
    sources = " and ".join(teacher.model for teacher in options.all_teachers.values())
    origin = f"distilled from {sources}" if sources else "no teacher"
    say(f"{options.name}: {models}, {origin}; {len(store.names)} photos; on {accelerator.device}.")
    for student, source, pair in task.matches:
        between = "" if len(students) + len(teachers) <= 2 else f" ({student} from {source})"
        say(f"compares features of {pair}{between}")
    if trainer.progress.step >= options.train.total_steps:
        say(f"nothing to do: step {trainer.progress.step} of {options.train.total_steps} is done.")
        return 0
    started = time.perf_counter()
    progress = trainer.run()
    say(f"done: {progress.step} steps in {_duration(time.perf_counter() - started)}.")
    for name in students:
        best = progress.best.get(name)
        said_best = "" if best is None else f", best in validation: {best:.3f} at step {progress.best_step[name]}"
        say(f"The {name.replace('_', ' ')}: {folder.trained(name)}{said_best}")
    return 0


def _accelerator(options: RunOptions) -> Accelerator:
    """One accelerator for the run; a device named in the options is taken, processes started by a launcher choose their own."""
    device = pick_device(options.device)
    if options.device != "auto" and device.type != "cpu":
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(device)
    # A process that is done with its share of the photos waits for the others, perhaps for longer than the usual 10 minutes.
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=24))
    # Some weights take no part in some steps: those behind the deepest tap, and adapters that a random path does not cross.
    partial = not any(term.on == "sr" for term in options.losses) or any(
        term.replays_student for term in options.losses
    )
    handlers = [patience, DistributedDataParallelKwargs(find_unused_parameters=partial)]
    accelerator = Accelerator(cpu=device.type == "cpu", kwargs_handlers=handlers)
    if options.data.batch_size % accelerator.num_processes:
        raise UserError(
            f"data.batch_size {options.data.batch_size} cannot be divided among {accelerator.num_processes} processes."
        )
    return accelerator


def _students(options: RunOptions) -> dict[str, SRModel]:
    students = {name: build_model(network, options.scale) for name, network in options.all_students.items()}
    student = students["student"]
    if options.init_from is not None:
        start = open_model(options.init_from, options.scale, options.student)
        if start.spec != student.spec:
            raise UserError(
                f"init_from: {options.init_from} is another network ({start.spec.architecture}) than student."
            )
        student.load_state_dict(start.state_dict())
    return students


def _teachers(options: RunOptions) -> dict[str, Teacher]:
    return {
        name: Teacher(open_model(teacher.model, options.scale, teacher.architecture), teacher.self_ensemble)
        for name, teacher in options.all_teachers.items()
    }


def _running_teachers(
    options: RunOptions, teachers: dict[str, Teacher], task: DistillationTask | MutualTask, store: PairStore
) -> dict[str, TappedTeacher]:
    """The teachers that are needed in each step: not those whose stored outputs are all that is looked at."""
    running = {}
    for name, teacher in teachers.items():
        pairs = [pair for _, source, pair in task.matches if source == name]
        if pairs or name not in store.teachers:
            running[name] = tap_teacher(teacher, name, pairs, options.losses)
    return running


def _open_store(options: RunOptions, teachers: dict[str, Teacher], accelerator: Accelerator) -> PairStore:
    data = options.data
    accelerator.print("reading training photos ...", flush=True)
    store = open_pairs(data.train, options.scale, data.lr_size, Path(data.cache_dir), data.on_unreadable)
    for reason in store.skipped:
        accelerator.print(f"skipped: {reason}")
    for name, teacher in teachers.items():
        output_is_compared = any(term.on == "sr" and term.looks_at(name) for term in options.losses)
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


def _validation(options: RunOptions, device: torch.device) -> Validate | None:
    """A function that measures a student, with everything it needs opened and checked before training starts."""
    if options.validation is None:
        return None
    benchmark = open_set(options.validation.set, options.scale, data_root())
    psnr, ssim = (metric.label for metric in default_metrics(options.scale))

    def validate(model: SRModel) -> dict[str, float]:
        result = evaluate_set(model, benchmark, device)
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
