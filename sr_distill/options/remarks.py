"""What is allowed in options and hardly meant: options checked against each other."""

from __future__ import annotations

from collections.abc import Iterator

from .losses import TermOptions
from .run import RunOptions


def remarks_on_options(options: RunOptions) -> list[str]:
    """Sentences about options that have no effect, or another than it looks, because of others."""
    return [
        *_on_the_schedule(options),
        *_on_validation(options),
        *(r for t in options.losses for r in _on_a_term(t, options)),
    ]


def _on_the_schedule(options: RunOptions) -> Iterator[str]:
    schedule, steps = options.schedule, options.train.total_steps
    if schedule.warmup >= steps:
        yield (
            f"schedule.warmup is {schedule.warmup} steps and the run has {steps}: the learning rate never comes to "
            f"{options.optimizer.learning_rate:g}."
        )
    late = [milestone for milestone in schedule.milestones if milestone >= steps]
    if late:
        yield f"schedule.milestones {', '.join(map(str, late))}: the run ends at step {steps}, before them."


def _on_validation(options: RunOptions) -> Iterator[str]:
    validation, steps = options.validation, options.train.total_steps
    if validation is not None and validation.every > steps:
        yield f"validation.every is {validation.every} and the run has {steps} steps: there is one validation, at the end."


def _on_a_term(term: TermOptions, options: RunOptions) -> Iterator[str]:
    plan, steps = term.schedule, options.train.total_steps
    if term.weight == 0:
        yield f"loss {term.label} has weight 0: it is not computed."
    if term.balance is not None and term.counts_from >= steps:
        yield (
            f"loss {term.label}: its weight is found at step {term.counts_from}, and the run ends at step {steps}: it never counts; "
            "see balance.after."
        )
        return
    if plan is None or term.weight == 0:
        return
    if plan.start >= steps:
        yield f"loss {term.label} starts at step {plan.start}, and the run ends at step {steps}: it is never computed."
        return
    span = (steps if plan.stop is None else min(steps, plan.stop)) - term.counts_from
    if plan.warmup > span:
        yield f"loss {term.label} rises over {plan.warmup} steps and is there for {span}: it never comes to its weight of {term.weight:g}."
    if plan.stop is not None and plan.stop > steps:
        yield f"loss {term.label} stops at step {plan.stop}, and the run ends at step {steps}."
