"""What each term of the objective contributes, measured in some of the steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..console import format_columns
from ..contracts import Prediction
from .terms import Term

_FIRST = 3  # steps after the start or a resume, which give the table
_MOST = 0.9


@dataclass(frozen=True)
class Contribution:
    """Of one term, in the mean of the measured steps.

    Attributes:
        weight, value: in the step.
        gradient: norm of the weighted term's gradient with respect to all weights of its student.
        seconds: of computing it, and its gradient as far as what the networks gave.
    """

    weight: float
    value: float
    gradient: float
    seconds: float


class Ledger:
    """Measures terms while a step computes them; the step's own gradient stays to the bit what it is.

    Args:
        every: steps between measurements, besides the first few; 0: those alone.
        first_step: the step at which the run starts or goes on.
    """

    def __init__(self, every: int, first_step: int) -> None:
        self._every, self._first = every, first_step
        self._early: dict[Term, list[Contribution]] = {}
        self._entries: dict[Term, list[Contribution]] = {}

    def is_due(self, step: int) -> bool:
        """Whether step ``step`` is measured."""
        self._is_early = self._first <= step < self._first + _FIRST
        return self._is_early or (self._every > 0 and step % self._every == 0)

    def has_table(self, step: int, total_steps: int) -> bool:
        """Whether, after ``step`` steps, the first few are measured."""
        return step == min(self._first + _FIRST, total_steps) > self._first

    def measure(
        self, term: Term, weight: float, compute: Callable[[], Tensor], given: Prediction, weights: Sequence[Tensor]
    ) -> Tensor:
        """Compute a term and put down what it contributes.

        Args:
            compute: gives its value.
            given: what its student gave.
            weights: the student's.
        """
        outputs = [x for x in (given.sr, *given.features.values()) if x is not None and x.requires_grad]
        started = _now(weights)
        value = compute()
        if not value.requires_grad:
            return value
        torch.autograd.grad(value, outputs, retain_graph=True, allow_unused=True)
        seconds = _now(weights) - started
        gradients = torch.autograd.grad(weight * value, weights, retain_graph=True, allow_unused=True)
        norms = [gradient.float().norm() for gradient in gradients if gradient is not None]
        norm = float(torch.stack(norms).norm()) if norms else 0.0
        entry = Contribution(weight, float(value.detach()), norm, seconds)
        for entries in (self._entries, *([self._early] if self._is_early else [])):
            entries.setdefault(term, []).append(entry)
        return value

    def take(self) -> dict[str, float]:
        """By label, each term's share in the steps that were measured since this was asked last."""
        shares = {term.label: share for term, (_, share) in _with_shares(self._entries).items()}
        self._entries = {}
        return shares

    def table(self, terms: Sequence[Term]) -> list[str]:
        """What the first few steps showed: a row for each term of the objective, and sentences about what is odd."""
        return _table_of(_with_shares(self._early), terms)


def _with_shares(measured: dict[Term, list[Contribution]]) -> dict[Term, tuple[Contribution, float]]:
    """Each term's mean contribution, and the share of its gradient's norm in the sum of those of its student's terms."""
    means = {term: _mean(entries) for term, entries in measured.items()}
    sums: dict[str, float] = {}
    for term, entry in means.items():
        sums[term.student] = sums.get(term.student, 0.0) + entry.gradient
    return {t: (entry, entry.gradient / sums[t.student] if sums[t.student] else 0.0) for t, entry in means.items()}


def _table_of(taken: dict[Term, tuple[Contribution, float]], terms: Sequence[Term]) -> list[str]:
    header = ("term", "reads", "weight", "value", "gradient", "cost")
    rows = []
    for term in terms:
        if term not in taken:
            rows.append((term.label, _reads(term), "0", "not yet", "", ""))
            continue
        entry, share = taken[term]
        numbers = (
            f"{entry.weight:.4g}",
            f"{entry.value:.4g}",
            "<1%" if 0 < share < 0.01 else f"{share:.0%}",
            f"{1000 * entry.seconds:.1f} ms",
        )
        rows.append((term.label, _reads(term), *numbers))
    lines = ["What the terms contribute in the first steps (gradient: share of the student's; cost: in a step):"]
    lines += ["  " + line for line in format_columns(header, rows, left=(0, 1)).splitlines()]
    several = {term.student for term in taken if sum(other.student == term.student for other in taken) > 1}
    for term, (entry, share) in taken.items():
        if term.student in several and share > _MOST:
            lines.append(
                f"warning: {term.label} is {share:.0%} of the gradient, so that the other terms count for little; "
                f"it would be half of it with weight {entry.weight * (1 - share) / share:.2g}."
            )
    return lines


def _reads(term: Term) -> str:
    return f"{term.loss.on} against {', '.join(term.sources) or 'hr'}"


def _mean(entries: Sequence[Contribution]) -> Contribution:
    # The fastest time: the first steps also fill caches.
    columns = ([getattr(entry, name) for entry in entries] for name in ("weight", "value", "gradient"))
    return Contribution(*(sum(column) / len(entries) for column in columns), min(entry.seconds for entry in entries))


def _now(weights: Sequence[Tensor]) -> float:
    if weights[0].device.type == "cuda":
        torch.cuda.synchronize(weights[0].device)
    return time.perf_counter()
