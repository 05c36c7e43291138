"""Weights that are found: by the size of gradients."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch

from ..contracts import Batch
from ..errors import UserError
from ..features import TappedTeacher
from ..samples import mean_over_processes
from .task import DistillationTask
from .terms import Term

BATCHES = 8
"""How many batches a weight is found from."""


def find_weights(
    task: DistillationTask,
    teachers: Mapping[str, TappedTeacher],
    batches: Iterable[Batch],
    weights: Sequence[float],
) -> dict[str, float]:
    """Give a weight to every term with ``balance`` that has none and a place in ``weights``: ``ratio sum_b |g'_b| / sum_b |g_b|``.

    g_b is the gradient of the unweighted term on its student's weights in batch b, g'_b that of the weighted terms that it is measured
    by. No weight of a network is changed, nor the samples that terms remember. Rounded to four digits, so that processes and
    devices agree.

    Args:
        weights: of all terms, in the step from which on the new ones count; those of terms that have none yet only say whether they are
            wanted.

    Returns:
        The weights that were found, by the terms' labels.

    Raises:
        UserError: a gradient is zero or not finite; names the term.
    """
    due = [term for term, weight in zip(task.terms, weights, strict=True) if weight > 0 and term.is_unbalanced]
    measured_by = {term: term.loss.balanced_by([other.loss for other in task.terms]) for term in due}
    sums: dict[Term, list[float]] = {term: [0.0, 0.0] for term in due}
    count = 0
    with _memory_kept(task):
        for batch in batches:
            count += 1
            for term in due:
                alone = [float(other is term) for other in task.terms]
                others = [w if p in measured_by[term] else 0.0 for p, w in enumerate(weights)]
                for index, chosen in enumerate((alone, others)):
                    sums[term][index] += _norm(task, teachers, batch, term.student, chosen)
    return {
        term.label: _found(term, own / max(count, 1), theirs / max(count, 1)) for term, (own, theirs) in sums.items()
    }


@contextlib.contextmanager
def _memory_kept(task: DistillationTask) -> Iterator[None]:
    """Samples that terms remember are afterwards those of before: the steps that follow see these batches again, as new ones."""
    remembering = [module for module in task.modules() if getattr(module, "remembers_samples", False)]
    before = [(buffer, buffer.clone()) for module in remembering for buffer in module.buffers()]
    try:
        yield
    finally:
        for buffer, values in before:
            buffer.copy_(values)


def _norm(
    task: DistillationTask,
    teachers: Mapping[str, TappedTeacher],
    batch: Batch,
    student: str,
    weights: Sequence[float],
) -> float:
    """Norm of the gradient on a student's weights, in the mean over all processes, of the terms that have a weight here."""
    # Those of other students have nothing to say here.
    weights = [w if term.student == student else 0.0 for w, term in zip(weights, task.terms)]
    total, _ = task(batch, task.given_by(teachers, batch, weights), weights)
    if not total.requires_grad:
        return 0.0
    own = [weight for weight in task.students[student].parameters() if weight.requires_grad]
    gradients = torch.autograd.grad(total, own, allow_unused=True)
    flat = torch.cat([torch.zeros_like(w).flatten() if g is None else g.flatten() for w, g in zip(own, gradients)])
    return float(mean_over_processes(flat.float()).norm())


def _found(term: Term, own: float, theirs: float) -> float:
    plan = term.loss.balance
    weight = plan.ratio * theirs / own if own > 0 else math.inf
    if not 0 < weight < math.inf:  # NaN, too
        raise UserError(
            f"loss {term.label}: its weight cannot be found: the norm of its gradient is {own:g}, and that of {plan.against} "
            f"{theirs:g}. Give it a weight, or another balance.against or balance.after."
        )
    term.found.weight = float(f"{weight:.4g}")
    return term.found.weight
