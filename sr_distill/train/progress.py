"""How far a run is, how its students are measured, and how it ends before its end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from ..contracts import Measured
from ..models import SRModel


class Validation(Protocol):
    """How students are measured.

    Attributes:
        judged_by: the metric and the sets that decide which student is best.
    """

    judged_by: str

    def measure(self, model: SRModel, stopped: Callable[[], bool]) -> Measured | None:
        """Measure a student; None: the function it was given said to stop."""

    def is_better(self, score: float, than: float) -> bool:
        """Whether a score beats another; one that is no number is worse than any."""


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
