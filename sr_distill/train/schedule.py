"""Learning rate and weights of losses as functions of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from ..options import LossOptions
from ..options.optimisation import ScheduleOptions


def learning_rate_at(step: int, base: float, total_steps: int, schedule: ScheduleOptions) -> float:
    """Learning rate of optimizer step ``step`` (0 to ``total_steps - 1``).

    Warm-up: ``base (step + 1) / warmup`` for ``step < warmup``. After it, with p the share of the remaining steps that is done:
    constant ``base``; cosine ``base (m + (1 - m)(1 + cos(pi p)) / 2)`` with m = min_factor (Loshchilov & Hutter 2017,
    equation 5); multistep ``base gamma^k`` after k milestones; wsd constant, then in the last share d = decay of the run linear to m
    (Hu et al., "MiniCPM", 2024, section 4): until then the rate does not depend on ``total_steps``.
    """
    if step < schedule.warmup:
        return base * (step + 1) / schedule.warmup
    if schedule.type == "cosine":
        done = (step - schedule.warmup) / max(1, total_steps - schedule.warmup)
        return base * (schedule.min_factor + (1 - schedule.min_factor) * 0.5 * (1 + math.cos(math.pi * done)))
    if schedule.type == "wsd":
        start = decay_start(total_steps, schedule)
        done = max(0, step - start) / max(1, total_steps - start)
        return base * (1 + (schedule.min_factor - 1) * done)
    if schedule.type == "multistep":
        return base * schedule.gamma ** sum(step >= milestone for milestone in schedule.milestones)
    return base


def decay_start(total_steps: int, schedule: ScheduleOptions) -> int | None:
    """The step at which the decay of a wsd schedule begins, from which a longer run can go on; None for the others."""
    if schedule.type != "wsd":
        return None
    return max(schedule.warmup, total_steps - round(schedule.decay * total_steps))


def weight_at(step: int, term: LossOptions, total_steps: int) -> float:
    """Weight of a term in optimizer step ``step``: ``weight x rise x fall`` from ``start`` to ``stop``, 0 outside.

    A term whose weight is found (``balance``) starts when it has one, ``after`` steps later. ``rise = min(1, (step - start + 1) / warmup)``.
    ``fall`` goes from 1, when the warm-up is over, to ``decay_to`` at ``stop`` (or the end of the run), linearly
    or along half a cosine.
    """
    plan, start = term.schedule, term.counts_from
    if plan is None:
        return term.weight if step >= start else 0.0
    stop = total_steps if plan.stop is None else plan.stop
    if not start <= step < stop:
        return 0.0
    since = step - start
    rise = min(1.0, (since + 1) / plan.warmup) if plan.warmup else 1.0
    done = min(1.0, max(0, since - plan.warmup) / max(1, stop - start - plan.warmup))
    if plan.decay == "cosine":
        done = 0.5 * (1 - math.cos(math.pi * done))
    return term.weight * rise * (1 + (plan.decay_to - 1) * done)
