"""What the students are worth while a run goes on: measured, shown beside bicubic upscaling and the teachers, and the best ones known."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

from ..contracts import Measured
from ..models import SRModel
from .log import MetricsLog
from .progress import Progress, Validation
from .run_folder import RunFolder


class Validator:
    """Validates the students of a run.

    Args:
        validation: how students are measured; None: not at all.
        beside: what stands beside them, by name: bicubic upscaling and the teachers.
        every: steps between two validations; there is one after ``total_steps``, too.
        total_steps: of the run.

    Attributes:
        warnings: by student, what the last validation showed and a user should know.
    """

    def __init__(
        self, validation: Validation | None, beside: Mapping[str, Measured], every: int, total_steps: int
    ) -> None:
        self._validation, self._beside = validation, dict(beside)
        self._every, self._total_steps = every, total_steps
        self.warnings: dict[str, list[str]] = {}
        self._known_dead: set[str] = set()

    def is_due(self, progress: Progress) -> bool:
        """Whether the students are to be measured after the steps that are done."""
        step = progress.step
        if self._validation is None or step in (0, progress.validated):
            return False
        return step == self._total_steps or step % self._every == 0

    def take_over(self, progress: Progress) -> list[str]:
        """Forget the best students of a resumed run where something else decides now; sentences to tell the user."""
        if self._validation is None or progress.judged_by in ("", self._validation.judged_by):
            return []
        progress.best, progress.best_step = {}, {}
        return [
            f"the best student so far was chosen by {progress.judged_by}: now {self._validation.judged_by} decides anew."
        ]

    def measure(self, students: Mapping[str, SRModel], stopped: Callable[[], bool]) -> dict[str, Measured] | None:
        """Measure students by name; None: ``stopped`` said so."""
        scores = {}
        for name, student in students.items():
            measured = self._validation.measure(student, stopped)
            if measured is None:
                return None
            scores[name] = measured
        return scores

    def judge(self, progress: Progress, scores: Mapping[str, Measured]) -> list[str]:
        """Take down that the students were measured; the names of those that are at their best so far."""
        progress.validated, progress.judged_by, best = progress.step, self._validation.judged_by, []
        for name, measured in scores.items():
            if self._validation.is_better(measured.score, progress.best.get(name, math.nan)):
                progress.best[name], progress.best_step[name] = measured.score, progress.step
                best.append(name)
        return best

    def write_beside(self, log: MetricsLog, folder: RunFolder) -> None:
        """Log what stands beside the students: once, at the start."""
        for name, measured in self._beside.items():
            log.write(0, name, dict(measured.values))
            log.images(0, folder.samples_of(name), f"{name}/", measured.samples)

    def write(self, log: MetricsLog, folder: RunFolder, step: int, scores: Mapping[str, Measured]) -> None:
        """Log what the students are worth, with their pictures."""
        for name, measured in scores.items():
            log.images(step, folder.samples(step), f"validation/{_prefix(name)}", measured.samples)
        log.write(step, "validation", _flat(scores))

    def lines(self, step: int, scores: Mapping[str, Measured]) -> Iterator[str]:
        """What to show: each value with those of bicubic and the teachers; a student that is dead, once."""
        for name, measured in scores.items():
            self.warnings[name] = list(self._warnings(name, measured))
            if measured.dead and name not in self._known_dead:
                self._known_dead.add(name)
                yield f"warning: step {step}: {self.warnings[name][0]}"
        yield f"step {step}: " + ", ".join(self._with_others(key, value) for key, value in _flat(scores).items())

    def _with_others(self, key: str, value: float) -> str:
        others = {name: measured.values[key] for name, measured in self._beside.items() if key in measured.values}
        shown = ", ".join(f"{name} {other:.4f}" for name, other in others.items())
        return f"{key} {value:.4f}" + (f" ({shown})" if shown else "")

    def _warnings(self, name: str, measured: Measured) -> Iterator[str]:
        if measured.dead:
            yield (
                f"the {name} is dead in part: {', '.join(measured.dead)} gave nothing but 0 for every image; a lower "
                "optimizer.learning_rate, a longer schedule.warmup or optimizer.clip_grad_norm may help."
            )
        bicubic = self._beside.get("bicubic")
        if bicubic is not None and not self._validation.is_better(measured.score, bicubic.score):
            yield (
                f"the {name} is no better than bicubic upscaling: {measured.score:.4f} against {bicubic.score:.4f} "
                f"({self._validation.judged_by})."
            )


def _prefix(name: str) -> str:
    return "" if name == "student" else f"{name}_"


def _flat(scores: Mapping[str, Measured]) -> dict[str, float]:
    """Every metric of every student, by the names of the log."""
    return {
        f"{_prefix(name)}{metric}": value
        for name, measured in scores.items()
        for metric, value in measured.values.items()
    }
