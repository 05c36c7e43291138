"""How far a run is, how its students are measured, and how it ends before its end."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from ..models import SRModel


@dataclass(frozen=True)
class Validation:
    """How students are measured.

    Attributes:
        judged_by: the set and the metric that decide which student is best.
        measure: gives the metrics of a student by name; the first decides which student is best. None: the function it was given
            said to stop.
        higher_is_better: whether the best student has the highest value.
    """

    judged_by: str
    measure: Callable[[SRModel, Callable[[], bool]], dict[str, float] | None]
    higher_is_better: bool = True

    def is_better(self, score: float, best: float | None) -> bool:
        """Whether a score beats the best one so far; a score that is no number is worse than any."""
        if best is None or math.isnan(best):
            return True
        return score > best if self.higher_is_better else score < best


class Interrupted(Exception):
    """Ctrl-C or a request to end: the state is saved, and the message says how to go on."""


@dataclass
class Progress:
    """What changes while a run goes on, besides weights.

    Attributes:
        step: optimizer steps that are done.
        validated: the step after which the students were measured last.
        judged_by: set and metric that decide which student is best.
        best, best_step: by student, the best score, and the step that it was reached at.
    """

    step: int = 0
    validated: int = 0
    judged_by: str = ""
    best: dict[str, float] = field(default_factory=dict)
    best_step: dict[str, int] = field(default_factory=dict)
