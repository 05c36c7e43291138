"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from ..console import progress_bar
from ..contracts import Batch, Measured
from ..data import PairStore, ResidentBatches, ResidentCrops, StepBatches, step_loader
from ..errors import UserError
from ..models import describe, save_model
from .average import Average
from .balance import BATCHES, find_weights
from .build import Run
from .checkpoint import load_checkpoint, save_checkpoint
from .log import MetricsLog
from .optimizer import make_optimizer
from .progress import Interrupted, Progress, Validation
from .recent import RecentTerms
from .recorded import RecordedSteps
from .run_folder import RunFolder, differences, refuse_changes
from .schedule import decay_start, learning_rate_at
from .shares import Ledger
from .stop import StopAgreement, StopRequest
from .validator import Validator


class Trainer:
    """Trains a student, or several that learn from each other, on stored pairs, with or without teachers.

    Args:
        run: the networks and the task.
        folder: where its files go.
        store: the training pairs.
        accelerator: devices and processes.
        validation: how students are measured; None: not at all.
        beside: what stands beside the students in each validation, by name: bicubic upscaling and the teachers.
    """

    def __init__(
        self,
        run: Run,
        folder: RunFolder,
        store: PairStore,
        accelerator: Accelerator,
        validation: Validation | None = None,
        beside: Mapping[str, Measured] | None = None,
    ) -> None:
        self._given = {
            "data.train": store.key,
            **{f"{name}.model": teacher.teacher.key for name, teacher in run.teachers.items()},
        }
        self.options, self.run, self.folder, self.accelerator = run.options, run, folder, accelerator
        total_steps = self.options.train.total_steps
        every = self.options.validation.every if self.options.validation else total_steps
        self.validator = Validator(validation, beside or {}, every, total_steps)
        self._prepare_networks(store)
        optimizer = make_optimizer(self.options.optimizer, run.task)
        self.averages = {name: Average(student, self.options.train.ema) for name, student in run.students.items()}
        self._helpers = run.task.helpers
        self.task, self.optimizer = accelerator.prepare(run.task, optimizer)
        self.batches = self._open_batches(store)
        self.progress = Progress()
        self._ledger: Ledger | None = None
        self._recent = RecentTerms(run.task.labels, accelerator)
        self._last_good: Path | None = None
        self._stop = StopRequest()
        self._agreement = StopAgreement(accelerator, self._stop)
        self._recorded = self._prepare_recordings()

    def _prepare_networks(self, store: PairStore) -> None:
        train, device = self.options.train, self.accelerator.device
        layout = torch.channels_last if train.channels_last else torch.contiguous_format
        needs = self.run.task.needs([1.0] * len(self.run.task.terms))
        for name, teacher in self.run.teachers.items():
            if name not in store.teachers or needs[name].paths:  # else its stored outputs are all that is looked at
                teacher.to(device, memory_format=layout)
            teacher.teacher.model.autocast = torch.bfloat16 if train.precision == "bf16" else None
        for student in self.run.students.values():
            student.to(device, memory_format=layout)
            student.autocast = torch.bfloat16 if train.precision == "bf16" else None
            if train.compile:
                student.net.compile()

    def _open_batches(self, store: PairStore) -> StepBatches:
        data, accelerator = self.options.data, self.accelerator
        share = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
        given = (store, data.lr_size, data.batch_size, self.options.seed)
        if data.device == "cpu":
            return StepBatches(*given, **share)
        if accelerator.device.type != data.device:
            raise UserError(
                f"data.device: cuda needs a run on a GPU, and this one is on {accelerator.device}: set device, or data.device to cpu."
            )
        return ResidentBatches(*given, **share, device=accelerator.device)

    def _prepare_recordings(self) -> RecordedSteps | None:
        """For ``train.cuda_graph``."""
        if not self.options.train.cuda_graph:
            return None
        if self.accelerator.num_processes > 1:
            raise UserError(
                "train.cuda_graph is for a run in one process: set it to false, or start the run without a launcher."
            )
        averages = [(self.averages[name], student) for name, student in self.run.students.items()]
        return RecordedSteps(self._gradients, self.optimizer.optimizer, averages, self.accelerator.device, tqdm.write)

    def resume(self, checkpoint: Path, allowed: Collection[str] = ()) -> list[str]:
        """Restore everything that :meth:`_save` saved; returns sentences to tell the user.

        Args:
            allowed: what may be another than it was: data.train (the photos), teacher.model (the content of its file).

        Raises:
            UserError: the checkpoint is damaged, belongs to another network, or the photos or a teacher are others now.
        """
        state = load_checkpoint(checkpoint)
        said = refuse_changes(differences(state.get("given", self._given), self._given), allowed, self.folder.path)
        try:
            for name, student in self.run.students.items():
                student.load_state_dict(state["students"][name])
                self.averages[name].load_state_dict(state["averages"][name])
            self._helpers.load_state_dict(state["helpers"])
            said += self._restore_optimizer(state)
            self.progress = Progress(**state["progress"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{checkpoint} does not fit this run ({' '.join(str(error).split())[:200]}).") from error
        self._last_good = checkpoint
        return [*said, *self.validator.take_over(self.progress)]

    def _restore_optimizer(self, state: dict[str, Any]) -> list[str]:
        """What it remembers, but with the settings of the options."""
        now = self.options.optimizer.type
        before = state.get("optimizer_type", now)
        if before != now and {before, now} != {"adam", "adamw"}:  # these two remember the same
            return [f"{now} begins without anything remembered: the steps so far were {before}'s."]
        settings = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, own in zip(self.optimizer.param_groups, settings):
            group.update(own)
        return []

    @property
    def is_done(self) -> bool:
        """Whether there is nothing left to train or to measure."""
        return self.progress.step >= self.options.train.total_steps and not self.validator.is_due(self.progress)

    def train(self) -> Progress:
        """Train to ``total_steps``; return where it ended and which step was best.

        Raises:
            Interrupted: Ctrl-C; a checkpoint was saved.
            UserError: the loss is not finite, or a file cannot be written.
        """
        total_steps, main = self.options.train.total_steps, self.accelerator.is_main_process
        log = MetricsLog(self.folder.path, self.progress.step) if main else None
        pin = self.accelerator.device.type == "cuda" and self.options.data.device == "cpu"
        loader = step_loader(self.batches, self.progress.step, total_steps, self.options.data.workers, pin)
        bar = progress_bar(
            total=total_steps, initial=self.progress.step, desc=self.options.name, unit="step", disable=not main
        )
        self.task.train()
        # In all processes: a term may exchange samples among them. What is compiled gives its gradients once only.
        if not self.options.train.compile:
            self._ledger = Ledger(self.options.train.shares_every, self.progress.step)
        if self.progress.step == 0:
            self._save_students(self.folder.initial)
        if log is not None and self.progress.step == 0:
            self.validator.write_beside(log, self.folder)
        try:
            with self._stop.listening():
                if self.validator.is_due(self.progress):  # the run was stopped before it was done
                    self._validate(log, bar)
                self._recent.restart_clock()
                for batch in loader:
                    for line in self._balance():
                        bar.write(line)
                    self._step(batch)
                    bar.update()
                    self._after_step(log, bar)
        finally:
            bar.close()
            if log is not None:
                log.close()
        return self.progress

    def take_step(self) -> None:
        """Take the next step with its own crops, and nothing of what may follow one: for measuring."""
        self._balance()
        self._step(self.batches[self.progress.step])

    def _balance(self) -> list[str]:
        """Find the weights that are to be found before this step, and say which."""
        step, task = self.progress.step, self.run.task
        weights = task.weights_at(step, self.options.train.total_steps)
        if not any(weight > 0 and term.is_unbalanced for term, weight in zip(task.terms, weights)):
            return []
        self._seed()
        batches = (self.batches[step + ahead] for ahead in range(BATCHES))
        on_device = (batch.to(self.accelerator.device, self.options.train.channels_last) for batch in batches)
        found = find_weights(task, self.run.teachers, on_device, weights)
        return [f"step {step}: the weight of {label} is {weight:g} from now on." for label, weight in found.items()]

    def _seed(self) -> None:
        """What a network draws (DropPath, dropout) is a function of seed, step and process: there is nothing to save or restore."""
        torch.manual_seed(_mixed(self.options.seed, self.progress.step, self.accelerator.process_index))

    def _step(self, batch: Batch | ResidentCrops) -> None:
        step, options, task = self.progress.step, self.options, self.run.task
        self._seed()
        rate = learning_rate_at(step, options.optimizer.learning_rate, options.train.total_steps, options.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        weights = task.weights_at(step, options.train.total_steps)
        ledger = self._ledger if self._ledger is not None and self._ledger.is_due(step) else None
        values = None
        if self._recorded is not None and ledger is None:
            values = self._recorded.take(batch, weights)
        if values is None:
            values = self._gradients(batch, weights, ledger)
            self.optimizer.step()
            for name, student in self.run.students.items():
                self.averages[name].update_parameters(student)
        self.progress.step += 1
        self._recent.add(values, weights)

    def _gradients(
        self, batch: Batch | ResidentCrops, weights: Sequence[float], ledger: Ledger | None = None
    ) -> Tensor:
        """Leave a step's gradients with the weights; what its terms are."""
        options, task = self.options, self.run.task
        images = batch.to(self.accelerator.device, options.train.channels_last)
        given = task.given_by(self.run.teachers, images, weights)
        total, terms = self.task(images, given, weights, ledger)
        self.optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(total)
        if options.optimizer.clip_grad_norm is not None:
            self.accelerator.clip_grad_norm_(self.task.parameters(), options.optimizer.clip_grad_norm)
        return self._recent.row(total, terms)

    def _after_step(self, log: MetricsLog | None, bar: tqdm) -> None:
        step, train = self.progress.step, self.options.train
        last = step == train.total_steps
        self._show_table(bar)
        stop = self._agreement.reached(step, other_steps_follow=self._active(step) != self._active(step - 1))
        turns = step == decay_start(train.total_steps, self.options.schedule)
        save_now = last or stop or turns or step % train.checkpoint_every == 0
        validate_now = self.validator.is_due(self.progress) and (last or not stop)
        if step % train.log_every == 0 or validate_now or save_now:
            self._flush(log, bar)
        if validate_now:
            stop = not self._validate(log, bar) or stop
            save_now = save_now or stop
        if save_now:
            self._save()
            self._save_students(self.folder.last)
            if self.options.validation is None:
                self._save_students(self.folder.trained)
        if stop and not self.is_done:
            raise Interrupted(
                f"stopped after step {step}; the state is in {self._last_good}. Go on with the same command and --resume."
            )

    def _active(self, step: int) -> list[bool]:
        """Which terms have a weight in a step."""
        return [weight > 0 for weight in self.run.task.weights_at(step, self.options.train.total_steps)]

    def _flush(self, log: MetricsLog | None, bar: tqdm) -> None:
        """Fetch the losses of the steps since the last flush, check them, and log their means."""
        count = len(self._recent)
        if not count:
            return
        speed = count * self.options.data.batch_size / max(self._recent.seconds, 1e-9)
        means = self._recent.means(self.progress.step, self._last_good)
        bar.set_postfix_str(
            ", ".join(f"{k} {v:.4f}" for k, v in means.items()) + f", {speed:.0f} images/s", refresh=False
        )
        shares = {} if self._ledger is None else self._ledger.take()
        if log is not None:
            weights = self.run.task.weights_at(self.progress.step - 1, self.options.train.total_steps)
            scheduled = {
                f"weight_{term.label}": weight
                for term, weight in zip(self.run.task.terms, weights)
                if term.loss.schedule is not None or term.found is not None
            }
            more = {"learning_rate": self.optimizer.param_groups[0]["lr"], "images_per_second": speed}
            log.write(
                self.progress.step,
                "train",
                {**means, **scheduled, **{f"share_{label}": share for label, share in shares.items()}, **more},
            )

    def _validate(self, log: MetricsLog | None, bar: tqdm) -> bool:
        """Measure the averaged weights of each student; keep them if they are its best so far. False: somebody asked to stop."""
        started, scores = time.perf_counter(), {}
        if self.accelerator.is_main_process:
            judged = {name: average.module.collapsed() for name, average in self.averages.items()}  # as in use
            scores = self.validator.measure(judged, lambda: self._stop.asked)
        self._recent.leave_out(time.perf_counter() - started)
        if self._agreement.of_all(float(scores is None))[0]:
            return False
        for name in self.validator.judge(self.progress, scores):
            self._save_student(name, self.folder.trained(name), scores[name].values)
        if log is not None:
            self.validator.write(log, self.folder, self.progress.step, scores)
            for line in self.validator.lines(self.progress.step, scores):
                bar.write(line)
        return True

    def _show_table(self, bar: tqdm) -> None:
        """After the first few steps, show what each term contributes."""
        if self._ledger is None or not self.accelerator.is_main_process:
            return
        if self._ledger.has_table(self.progress.step, self.options.train.total_steps):
            bar.write("\n".join(self._ledger.table(list(self.run.task.terms))))

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            state = {
                "networks": {name: describe(student) for name, student in self.run.students.items()},
                "given": self._given,
                "total_steps": self.options.train.total_steps,
                "students": {name: student.state_dict() for name, student in self.run.students.items()},
                "averages": {name: average.state_dict() for name, average in self.averages.items()},
                "helpers": self._helpers.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "optimizer_type": self.options.optimizer.type,
                "progress": vars(self.progress),
            }
            self._last_good = save_checkpoint(
                self.folder.checkpoints,
                self.progress.step,
                state,
                self.options.train.keep_checkpoints,
                spare=decay_start(self.options.train.total_steps, self.options.schedule),
            )
        self.accelerator.wait_for_everyone()

    def _save_students(self, path_of: Callable[[str], Path]) -> None:
        for name in self.averages:
            self._save_student(name, path_of(name))

    def _save_student(self, name: str, path: Path, scores: dict[str, float] | None = None) -> None:
        if self.accelerator.is_main_process:
            notes = {
                "run": self.options.name,
                "step": str(self.progress.step),
                "teacher": ", ".join(teacher.model for teacher in self.options.all_teachers.values()),
                **{metric: f"{value:.4f}" for metric, value in (scores or {}).items()},
            }
            save_model(self.averages[name].module.collapsed(), path, notes)


def _mixed(*numbers: int) -> int:
    """One seed out of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
