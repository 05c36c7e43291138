"""Which of several models are worth having: the Pareto front, and the best within a budget."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ..errors import UserError, did_you_mean
from .profile import Profile

BUDGETS = {
    "latency_ms": "latency_ms",
    "memory_mb": "peak_memory",
    "parameters": "parameters",
    "macs": "macs",
    "file_bytes": "file_bytes",
}
"""What a budget can be set on, and the attribute of a profile that it looks at (memory_mb in megabytes)."""


def pareto_front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names of the points (cost, quality) that no other beats in both; by rising cost.

    A point is left out if another costs no more and is at least as good, and better in one of the two.
    """
    front = []
    for name, (cost, quality) in points.items():
        beaten = any(
            other_cost <= cost and other >= quality and (other_cost, other) != (cost, quality)
            for other_cost, other in points.values()
        )
        if not beaten:
            front.append(name)
    return sorted(front, key=lambda name: points[name][0])


def parse_budget(text: str) -> tuple[str, float]:
    """``latency_ms=30`` as a name and a number.

    Raises:
        UserError: there is no such budget, or the value is not a positive number.
    """
    name, _, value = text.partition("=")
    if name not in BUDGETS:
        hint = did_you_mean(name, BUDGETS)
        raise UserError(f"--budget {text}: there is no budget '{name}'.{hint} Allowed: {', '.join(BUDGETS)}.")
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise UserError(f"--budget {text}: expected {name}=NUMBER with a number above 0.")
    return name, number


def cost_of(profile: Profile, budget: str) -> float:
    """What a model costs, in the unit of the budget.

    Raises:
        UserError: the budget is on the file's size, and the model has no file.
    """
    value = getattr(profile, BUDGETS[budget])
    if value is None:
        raise UserError("--budget file_bytes needs candidates that are files.")
    return value / 1e6 if budget == "memory_mb" else float(value)


def best_within(
    quality: Mapping[str, float], profiles: Mapping[str, Profile], budgets: Mapping[str, float]
) -> str | None:
    """The model of the highest quality that keeps every budget; None if none does."""
    kept = [
        name for name in quality if all(cost_of(profiles[name], budget) <= limit for budget, limit in budgets.items())
    ]
    return max(kept, key=lambda name: quality[name], default=None)
