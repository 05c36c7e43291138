"""The learning rate as a function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from ..options.schema import ScheduleOptions


def learning_rate_at(step: int, base: float, total_steps: int, schedule: ScheduleOptions) -> float:
    """Learning rate of optimizer step ``step`` (0 to ``total_steps - 1``).

    Warm-up: ``base (step + 1) / warmup`` for ``step < warmup``. After it, with p the share of the remaining steps that is done:
    constant ``base``; cosine ``base (m + (1 - m)(1 + cos(pi p)) / 2)`` with m = min_factor (Loshchilov & Hutter 2017,
    equation 5); multistep ``base gamma^k`` after k milestones.
    """
    if step < schedule.warmup:
        return base * (step + 1) / schedule.warmup
    if schedule.type == "cosine":
        done = (step - schedule.warmup) / max(1, total_steps - schedule.warmup)
        return base * (schedule.min_factor + (1 - schedule.min_factor) * 0.5 * (1 + math.cos(math.pi * done)))
    if schedule.type == "multistep":
        return base * schedule.gamma ** sum(step >= milestone for milestone in schedule.milestones)
    return base
