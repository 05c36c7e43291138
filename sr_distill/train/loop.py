"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from ..console import progress_bar
from ..contracts import Prediction
from ..data import PairStore, StepBatches, step_loader
from ..errors import UserError
from ..features import TappedTeacher
from ..models import SRModel, save_model
from ..options import RunOptions
from .checkpoint import load_checkpoint, save_checkpoint
from .ema import EMA
from .log import MetricsLog
from .run_folder import RunFolder
from .schedule import learning_rate_at, weight_at
from .stop import StopRequest
from .task import DistillationTask, MutualTask, term_vector

Validate = Callable[[SRModel], dict[str, float]]
"""Measures a student; the first value is the one that decides which student is best (higher is better)."""


class Interrupted(Exception):
    """Ctrl-C or a request to end: the state is saved, and the message says how to go on."""


@dataclass
class Progress:
    """What changes while a run goes on, besides weights."""

    step: int = 0
    best: dict[str, float] = field(default_factory=dict)
    best_step: dict[str, int] = field(default_factory=dict)


class Trainer:
    """Trains a student, or several that learn from each other, on stored pairs, with or without teachers.

    Args:
        options: the options of the run.
        folder: where its files go.
        task: the students, with their starting weights, and the objective.
        teachers: the frozen teachers by name, without those whose stored outputs are all that is looked at.
        store: the training pairs.
        accelerator: devices and processes; created once by the caller.
        validate: measures a student, or None.
    """

    def __init__(
        self,
        options: RunOptions,
        folder: RunFolder,
        task: DistillationTask | MutualTask,
        teachers: Mapping[str, TappedTeacher],
        store: PairStore,
        accelerator: Accelerator,
        validate: Validate | None = None,
    ) -> None:
        self.options, self.folder, self.accelerator, self.validate = options, folder, accelerator, validate
        self._layout = torch.channels_last if options.train.channels_last else torch.contiguous_format
        autocast = torch.bfloat16 if options.train.precision == "bf16" else None
        self.students = task.students
        for student in self.students.values():
            student.to(accelerator.device, memory_format=self._layout)
        self.averages = {name: EMA(student, options.train.ema) for name, student in self.students.items()}
        for student in self.students.values():
            student.autocast = autocast
            if options.train.compile:
                student.net.compile()
        self.teachers = teachers
        for teacher in teachers.values():
            teacher.to(accelerator.device, memory_format=self._layout)
            teacher.teacher.model.autocast = autocast
        self._helpers = task.helpers
        optimizer = _make_optimizer(options, task)
        self._labels = ["total", *task.labels]
        self.task, self.optimizer = accelerator.prepare(task, optimizer)
        self.batches = StepBatches(
            store,
            options.data.lr_size,
            options.data.batch_size,
            options.seed,
            accelerator.process_index,
            accelerator.num_processes,
        )
        self.progress = Progress()
        self._pending: list[Tensor] = []
        self._last_log = 0.0
        self._last_weights: list[float] = []
        self._last_good: Path | None = None
        self._stop = StopRequest()

    def resume(self, checkpoint: Path) -> None:
        """Restore everything that :meth:`_save` saved.

        Raises:
            UserError: the checkpoint is damaged or belongs to another network.
        """
        state = load_checkpoint(checkpoint)
        try:
            for name, student in self.students.items():
                student.load_state_dict(state["students"][name])
                self.averages[name].load_state_dict(state["averages"][name])
            self._helpers.load_state_dict(state["helpers"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.progress = Progress(**state["progress"])
            torch.set_rng_state(state["rng"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{checkpoint} does not fit this run ({' '.join(str(error).split())[:200]}).") from error
        self._last_good = checkpoint

    def run(self) -> Progress:
        """Train to ``total_steps``; return where it ended and which step was best.

        Raises:
            Interrupted: Ctrl-C; a checkpoint was saved.
            UserError: the loss is not finite, or a file cannot be written.
        """
        total_steps, main = self.options.train.total_steps, self.accelerator.is_main_process
        log = MetricsLog(self.folder.path, self.progress.step) if main else None
        loader = step_loader(self.batches, self.progress.step, total_steps, self.options.data.workers)
        bar = progress_bar(
            total=total_steps, initial=self.progress.step, desc=self.options.name, unit="step", disable=not main
        )
        self.task.train()
        if self.progress.step == 0:
            self._save_students(self.folder.initial)
        try:
            with self._stop.listening():
                self._last_log = time.perf_counter()
                for batch in loader:
                    self._pending.append(self._step(batch))
                    self.progress.step += 1
                    bar.update()
                    self._after_step(log, bar)
        finally:
            bar.close()
            if log is not None:
                log.close()
        return self.progress

    def _step(self, batch: Any) -> Tensor:
        batch = batch.to(self.accelerator.device, self.options.train.channels_last)
        rate = learning_rate_at(
            self.progress.step,
            self.options.optimizer.learning_rate,
            self.options.train.total_steps,
            self.options.schedule,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        targets = {name: Prediction(stored) for name, stored in batch.teacher_sr.items()}
        for name, teacher in self.teachers.items():
            targets[name] = teacher(batch.lr, stored_sr=batch.teacher_sr.get(name))
        total_steps = self.options.train.total_steps
        self._last_weights = [weight_at(self.progress.step, term, total_steps) for term in self.options.losses]
        total, terms = self.task(batch, targets, self._last_weights)
        self.optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(total)
        if self.options.optimizer.clip_grad_norm is not None:
            self.accelerator.clip_grad_norm_(self.task.parameters(), self.options.optimizer.clip_grad_norm)
        self.optimizer.step()
        for name, student in self.students.items():
            self.averages[name].update(student)
        return term_vector(total, terms)

    def _after_step(self, log: MetricsLog | None, bar: tqdm) -> None:
        step, train, validation = self.progress.step, self.options.train, self.options.validation
        last = step == train.total_steps
        stop = self._asked_to_stop()
        validate_now = validation is not None and self.validate is not None and (last or step % validation.every == 0)
        save_now = last or stop or step % train.checkpoint_every == 0
        if step % train.log_every == 0 or validate_now or save_now:
            self._flush(log, bar)
        if validate_now:
            self._validate(log, bar)
        if save_now:
            self._save()
            if validation is None:
                self._save_students(self.folder.trained)
        if stop and not last:
            raise Interrupted(
                f"stopped after step {step}; the state is in {self._last_good}. Go on with the same command and --resume."
            )

    def _flush(self, log: MetricsLog | None, bar: tqdm) -> None:
        """Fetch the losses of the steps since the last flush, check them, and log their means."""
        if not self._pending:
            return
        first = self.progress.step - len(self._pending) + 1
        values = self.accelerator.reduce(torch.stack(self._pending), reduction="mean").cpu()
        self._check_finite(values, first)
        seconds = time.perf_counter() - self._last_log
        means = dict(zip(self._labels, values.mean(0).tolist()))
        speed = len(self._pending) * self.options.data.batch_size / max(seconds, 1e-9)
        self._pending, self._last_log = [], time.perf_counter()
        rate = self.optimizer.param_groups[0]["lr"]
        bar.set_postfix_str(
            ", ".join(f"{k} {v:.4f}" for k, v in means.items()) + f", {speed:.0f} images/s", refresh=False
        )
        if log is not None:
            weights = zip(self.options.losses, self._last_weights)
            scheduled = {f"weight_{term.label}": weight for term, weight in weights if term.schedule is not None}
            more = {"learning_rate": rate, "images_per_second": speed}
            log.write(self.progress.step, "train", {**means, **scheduled, **more})

    def _check_finite(self, values: Tensor, first: int) -> None:
        bad = ~values.isfinite()
        if not bad.any():
            return
        row = int(bad.any(1).nonzero()[0])
        # The terms stand behind the total; a term that is not finite is the cause, the total only the sum.
        column = int(bad[row].nonzero()[-1])
        good = self._last_good or "none was saved yet"
        raise UserError(
            f"the loss is not finite: term '{self._labels[column]}' is {values[row, column]:g} at step {first + row}. "
            f"Nothing was saved after that. Last good checkpoint: {good}. A lower optimizer.learning_rate, "
            "optimizer.clip_grad_norm or train.precision fp32 may help."
        )

    def _validate(self, log: MetricsLog | None, bar: tqdm) -> None:
        """Measure the averaged weights of each student; keep them if they are its best so far."""
        if self.accelerator.is_main_process and self.validate is not None:
            started, logged, progress = time.perf_counter(), {}, self.progress
            for name, average in self.averages.items():
                scores = self.validate(average.module)
                score = next(iter(scores.values()))
                prefix = "" if name == "student" else f"{name}_"
                logged |= {f"{prefix}{metric}": value for metric, value in scores.items()}
                if score > progress.best.get(name, float("-inf")):
                    progress.best[name], progress.best_step[name] = score, progress.step
                    self._save_student(name, self.folder.trained(name), scores)
            bar.write(f"step {progress.step}: " + ", ".join(f"{key} {value:.4f}" for key, value in logged.items()))
            if log is not None:
                log.write(progress.step, "validation", logged)
            self._last_log += time.perf_counter() - started
        self.accelerator.wait_for_everyone()

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            state = {
                "students": {name: student.state_dict() for name, student in self.students.items()},
                "averages": {name: average.state_dict() for name, average in self.averages.items()},
                "helpers": self._helpers.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "progress": vars(self.progress),
                "rng": torch.get_rng_state(),
            }
            path = save_checkpoint(
                self.folder.checkpoints, self.progress.step, state, self.options.train.keep_checkpoints
            )
            self._last_good = path
        self.accelerator.wait_for_everyone()

    def _save_students(self, path_of: Callable[[str], Path]) -> None:
        for name in self.students:
            self._save_student(name, path_of(name))

    def _save_student(self, name: str, path: Path, scores: dict[str, float] | None = None) -> None:
        if self.accelerator.is_main_process:
            notes = {
                "run": self.options.name,
                "step": str(self.progress.step),
                "teacher": ", ".join(teacher.model for teacher in self.options.all_teachers.values()),
                **{metric: f"{value:.4f}" for metric, value in (scores or {}).items()},
            }
            save_model(self.averages[name].module, path, notes)

    def _asked_to_stop(self) -> bool:
        """Whether to stop now. Several processes agree at the steps that log, so that none waits for another for ever."""
        if self.accelerator.num_processes == 1:
            return self._stop.asked
        if self.progress.step % self.options.train.log_every:
            return False
        asked = torch.tensor(float(self._stop.asked), device=self.accelerator.device)
        return bool(self.accelerator.reduce(asked, reduction="sum").item())


def _make_optimizer(options: RunOptions, task: DistillationTask | MutualTask) -> torch.optim.Optimizer:
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[options.optimizer.type]
    return kind(
        [parameter for parameter in task.parameters() if parameter.requires_grad],
        lr=options.optimizer.learning_rate,
        betas=tuple(options.optimizer.betas),
        weight_decay=options.optimizer.weight_decay,
    )
