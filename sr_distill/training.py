"""A training run from its options to its files: photos, teachers, validation and the loop brought together."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from .contracts import Measured
from .data import PairStore
from .devices import is_slow_in_bf16, keep_freed_memory, process_share, together
from .errors import UserError
from .evaluate import Validation, compare_teacher
from .files import data_root
from .options import RunOptions, remarks_on_options
from .train import Run, RunFolder, Trainer, build_run, clear_leftovers, locked, make_accelerator, open_run
from .train.checkpoint import latest_checkpoint, step_of


def train_run(options: RunOptions, resume: bool = False, allowed: Sequence[str] = ()) -> int:
    """Train as options say; the exit code.

    Args:
        resume: go on from the last checkpoint.
        allowed: keys of options that may have changed since the run was started.

    Raises:
        Interrupted: somebody asked to stop; a checkpoint was saved.
        UserError: something that the user can put right.
    """
    set_seed(options.seed)
    if options.train.threads is not None:
        torch.set_num_threads(options.train.threads)
    for remark in remarks_on_options(options):
        if process_share()[0] == 0:
            print(f"warning: {remark}", flush=True)
    run = build_run(options)
    accelerator = make_accelerator(options, run.task.has_idle_weights)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    if options.train.precision == "bf16" and is_slow_in_bf16(accelerator.device):
        accelerator.print(
            "warning: this CPU has no bfloat16: train.precision fp32 is several times as fast here.", flush=True
        )
    with accelerator.main_process_first():
        # What the first process finds is found by the others, too: it changes nothing before all have looked.
        folder, checkpoint, said = open_run(options, resume, allowed)
    accelerator.wait_for_everyone()
    with contextlib.ExitStack() as stack:
        together(lambda: stack.enter_context(locked(folder.path)) and None if accelerator.is_main_process else None)
        return _train_in(run, folder, checkpoint, said, allowed, accelerator)


def _train_in(
    run: Run,
    folder: RunFolder,
    checkpoint: Path | None,
    said: Sequence[str],
    allowed: Sequence[str],
    accelerator: Accelerator,
) -> int:
    """Train in a folder that no other process trains in."""
    options, device, main = run.options, accelerator.device, accelerator.is_main_process
    say = functools.partial(accelerator.print, flush=True)
    validation = (
        None if options.validation is None else Validation(options.validation, options.scale, device, data_root())
    )
    say("reading training photos ...")
    store = run.open_store(device, say, quiet=not main)
    for line in _check_teachers(run, store, device):
        say(line)
    beside = {} if validation is None else _beside(run, validation, quiet=not main)
    trainer = Trainer(run, folder, store, accelerator, validation, beside)
    for line in said:
        say(line)
    if checkpoint is not None:
        for line in trainer.resume(checkpoint, allowed):
            say(line)
        say(f"resuming from {checkpoint} (step {trainer.progress.step}).")
    elif run.not_taken:
        say(f"starts from {options.init_from} but for what has another shape there: {', '.join(run.not_taken)}.")
    _introduce(run, store, accelerator)
    if trainer.is_done:
        say(f"nothing to do: step {trainer.progress.step} of {options.train.total_steps} is done.")
        return 0
    if main:  # only now that everything is loaded
        if checkpoint is None:
            clear_leftovers(folder)
        elif (last := latest_checkpoint(folder.checkpoints)) != checkpoint:
            for aside in folder.keep_trained(run.students, step_of(last)):
                say(f"the student of {step_of(last)} steps stays as {aside}.")
        folder.write_options(options, trainer.progress.step)
    started = time.perf_counter()
    progress = trainer.train()
    say(f"done: {progress.step} steps in {_duration(time.perf_counter() - started)}.")
    for name in run.students:
        best = progress.best.get(name)
        said_best = "" if best is None else f", best in validation: {best:.3f} at step {progress.best_step[name]}"
        say(f"The {name.replace('_', ' ')}: {folder.trained(name)}{said_best}")
    for warning in (warning for found in trainer.validator.warnings.values() for warning in found):
        say(f"warning: {warning}")
    return 0


def _check_teachers(run: Run, store: PairStore, device: torch.device) -> list[str]:
    """Compare each teacher with bicubic upscaling on a few photos; a sentence for each.

    Raises:
        UserError: one is worse, and the options do not say that it may be.
    """
    said = []
    for name, tapped in run.teachers.items():
        teacher, bicubic = compare_teacher(name, tapped.teacher, store, device)
        found = f"{name} has {teacher:.2f} dB on a few training photos (PSNR on luma), and bicubic upscaling {bicubic:.2f} dB"
        if teacher < bicubic and run.options.all_teachers[name].check:
            raise UserError(
                f"{found}: nothing good can be learned from it. Is {run.options.all_teachers[name].model} for another scale, or are the LR "
                "images not made by bicubic? For a teacher that is not trained for PSNR: teacher.check: false."
            )
        said.append(f"{found}.")
    return said


def _beside(run: Run, validation: Validation, quiet: bool) -> dict[str, Measured]:
    """What stands beside the students in each validation."""
    cache = Path(run.options.data.cache_dir)
    measured = {"bicubic": validation.of_bicubic()}
    for name, tapped in run.teachers.items():
        measured[name] = validation.of_teacher(name, tapped.teacher, cache, quiet)
    return measured


def _introduce(run: Run, store: PairStore, accelerator: Accelerator) -> None:
    """Say what is trained, from what, on what."""
    options, say = run.options, functools.partial(accelerator.print, flush=True)
    networks = run.students.values()
    models = " and ".join(f"{m.spec.name} x{options.scale}, {m.num_parameters:,} parameters" for m in networks)
    sources = " and ".join(teacher.model for teacher in options.all_teachers.values())
    origin = f"distilled from {sources}" if sources else "no teacher"
    say(f"{options.name}: {models}, {origin}; {len(store.names)} photos; on {accelerator.device}.")
    for source in dict.fromkeys(source for term in run.task.terms for source in term.loss.weights_used()):
        say(f"looks through {source}")
    for link, pairs in run.task.pairs.items():
        between = "" if len(run.students) + len(run.teachers) <= 2 else f" ({link.student} from {link.source})"
        for pair in pairs:
            say(f"compares features of {pair}{between}")


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
