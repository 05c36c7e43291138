"""Lines of an objective over any networks: what each compares, with which function."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from .. import losses as functions
from ..errors import UserError, did_you_mean
from ..options import validate
from ..options.losses import WeightSchedule
from ..registry import LOSSES

Line = Mapping[str, Any] | Callable[[Tensor, Tensor], Tensor]

_KEYS = ("type", "function", "pairs", "against", "teacher", "adapter", "weight", "schedule", "name", "task")
_ADAPTERS = ("auto", "none", "linear", "conv1x1", "conv3x3")


@dataclass(frozen=True)
class Term:
    """A line of the objective, resolved."""

    name: str
    function: Callable[..., Tensor]
    keywords: Mapping[str, Any]
    pairs: tuple[tuple[str, str], ...]
    against: str
    teachers: tuple[str, ...]
    adapter: str
    needs_equal: bool
    weight: float
    schedule: WeightSchedule | None
    task: Callable[[Tensor, Tensor], Tensor] | None

    @property
    def counts_from(self) -> int:
        """The first step in which it counts."""
        return 0 if self.schedule is None else self.schedule.start

    @property
    def has_labels_beside(self) -> bool:
        """Whether its function takes labels besides the two tensors that it compares."""
        return "labels" in list(_parameters(self.function))[2:]

    @property
    def wants_labels(self) -> bool:
        """Whether it looks at the labels."""
        return self.against == "labels" or self.task is not None or self.has_labels_beside


def _cross_entropy(student: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(student, labels)


@functools.cache
def _named() -> Mapping[str, Callable[..., Tensor]]:
    """Functions that compare two tensors, by name."""
    found = {"cross_entropy": _cross_entropy}
    for name in functions.__all__:
        function = getattr(functions, name)
        if not inspect.isfunction(function):
            continue
        needed = [p.name for p in _parameters(function).values() if p.default is p.empty]
        if len([n for n in needed if n not in ("labels", "task_loss")]) == 2:
            found[name] = function
    return found


@functools.cache
def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters


def read_term(line: Line, index: int, teachers: Sequence[str]) -> Term:
    """Resolve a line.

    Args:
        index: of the line, for errors.
        teachers: their names.

    Raises:
        UserError: a key, a name or a value is wrong; says which, and what is allowed.
    """
    where = f"losses[{index}]"
    tree = dict(line) if isinstance(line, Mapping) else {"function": line}
    name, function = tree.get("type"), _function(where, tree)
    keywords = {key: value for key, value in tree.items() if key not in _KEYS}
    _check_keywords(where, function, keywords, is_own=name is None)
    pairs = tree.get("pairs", ())
    pairs = tuple(pairs.items() if isinstance(pairs, Mapping) else (tuple(pair) for pair in pairs))
    against, named = _other_side(where, tree, bool(pairs), teachers)
    adapter, weight = tree.get("adapter", "auto"), tree.get("weight", 1.0)
    if adapter not in _ADAPTERS or (adapter != "auto" and not pairs):
        raise UserError(f"{where}: adapter is '{adapter}'; allowed, for terms with pairs: {', '.join(_ADAPTERS)}.")
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not weight >= 0:
        raise UserError(f"{where}: weight is {weight!r}; expected a number of at least 0.")
    schedule = tree.get("schedule")
    entry = LOSSES.get(name) if name is not None else None
    return Term(
        name=str(tree.get("name") or name or getattr(function, "__name__", type(function).__name__)),
        function=function,
        keywords=keywords,
        pairs=pairs,
        against=against,
        teachers=named,
        adapter=adapter,
        needs_equal=entry is None or entry.adapted,
        weight=float(weight),
        schedule=None if schedule is None else validate(WeightSchedule, dict(schedule), f"{where}.schedule"),
        task=_task(where, name, tree),
    )


def _function(where: str, tree: Mapping[str, Any]) -> Callable[..., Tensor]:
    """What a line computes, by ``type`` or ``function``."""
    name, function = tree.get("type"), tree.get("function")
    if (name is None) == (function is None):
        raise UserError(f"{where}: give type, the name of a loss, or function, one of your own.")
    if name is None:
        if not callable(function):
            raise UserError(
                f"{where}: function: got {function!r}; expected something that can be called with two tensors."
            )
        return function
    if name not in _named():
        raise UserError(
            f"{where}: there is no loss '{name}' of two tensors.{did_you_mean(str(name), _named())} Allowed: {', '.join(_named())}."
        )
    return _named()[name]


def _other_side(
    where: str, tree: Mapping[str, Any], has_pairs: bool, teachers: Sequence[str]
) -> tuple[str, tuple[str, ...]]:
    """What the student is compared with, teacher or labels, and the names of the teachers."""
    by_labels = not has_pairs and tree.get("type") in ("cross_entropy", None)
    against, named = tree.get("against", "labels" if by_labels else "teacher"), tree.get("teacher")
    if against not in ("teacher", "labels") or (against == "labels" and has_pairs):
        raise UserError(f"{where}: against is '{against}'; allowed: teacher, and for outputs labels.")
    if named is not None and named not in teachers:
        raise UserError(f"{where}: there is no teacher '{named}'. Teachers: {', '.join(teachers) or 'none'}.")
    if against == "labels":
        return against, ()
    if not teachers or (has_pairs and named is None and len(teachers) > 1):
        raise UserError(f"{where} compares with a teacher; say which: {', '.join(teachers) or 'there is none'}.")
    return against, ((named,) if named else tuple(teachers))


def _task(where: str, name: str | None, tree: Mapping[str, Any]) -> Callable[[Tensor, Tensor], Tensor] | None:
    if name != "hard_soft":
        if "task" in tree:
            raise UserError(f"{where}: task is an option of hard_soft.")
        return None
    task = tree.get("task", "cross_entropy")
    found = task if callable(task) else _named().get(task)
    if found is None:
        raise UserError(
            f"{where}: task is {task!r}; expected a loss of output and labels, as cross_entropy, l1 or mse."
        )
    return found


def _check_keywords(where: str, function: Callable[..., Any], keywords: Mapping[str, Any], is_own: bool) -> None:
    parameters = _parameters(function)
    if is_own and any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    allowed = [name for name, p in parameters.items() if p.default is not p.empty]
    for key in keywords:
        if key not in allowed:
            keys = [*allowed, *_KEYS]
            raise UserError(f"{where}: unknown key '{key}'.{did_you_mean(key, keys)} Allowed: {', '.join(keys)}.")


def check_terms(terms: Sequence[Term], teachers: Sequence[str]) -> None:
    """Raise where the lines do not make an objective together.

    Raises:
        UserError: there are none, two have the same name, or no one looks at a teacher.
    """
    if not terms:
        raise UserError("a distiller without losses has nothing to do: give at least one.")
    repeated = sorted({t.name for i, t in enumerate(terms) if t.name in [other.name for other in terms[:i]]})
    if repeated:
        raise UserError(f"several losses are called {', '.join(repeated)}: give each a 'name' of its own.")
    idle = [name for name in teachers if not any(name in term.teachers for term in terms)]
    if idle:
        raise UserError(f"no loss looks at the teacher {', '.join(idle)}: add one, or leave it out.")
