"""Distillation between any two networks: classifiers, regressors, whatever has layers and an output."""

from __future__ import annotations

import contextlib
import difflib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import losses as functions
from .errors import UserError, did_you_mean
from .losses.common import in_full_precision
from .options import validate
from .options.losses import WeightSchedule
from .registry import LOSSES
from .train.schedule import weight_at

Line = Mapping[str, Any] | Callable[[Tensor, Tensor], Tensor]
Pairs = Mapping[str, str] | Sequence[tuple[str, str]]

_KEYS = ("type", "function", "pairs", "against", "teacher", "adapter", "weight", "schedule", "name", "task")
_ADAPTERS = ("auto", "none", "linear", "conv1x1", "conv3x3")


class ModuleDistiller(nn.Module):
    """An objective over the outputs and layers of any networks: ``total, terms = distiller(inputs, labels=labels)``.

    ``total`` is the weighted sum, ``terms`` the unweighted values by name. Its parameters are the student's and the adapters'; teachers
    are frozen, move along with ``.to`` and are in neither its parameters, its state dict nor its training mode. In a loop that runs the
    student itself: ``with distiller.watching(): ...`` around it, then ``distiller.total(labels)``. For super-resolution there is
    :class:`Distiller`, which knows of images.

    Args:
        student: the network that is trained.
        teacher: the network that is imitated, several by name, or None. Terms on outputs compare with the (weighted) mean of the outputs
            of all of them where they do not name one with ``teacher``.
        losses: terms. Each is a mapping of ``type``: the name of a function of :mod:`sr_distill.losses` (``soft_target``, ``logits``,
            ``decoupled``, ``dist``, ``hard_soft``, ``fitnet``, ``cosine``, ``similarity``, ...) or ``cross_entropy``, or ``function``: one of
            your own; its keyword arguments; and ``weight``, ``schedule`` (as in the options of a run), ``name``. A term compares outputs,
            or with ``pairs``, a mapping from layers of the student to layers of the teacher, what these give (mean over the pairs).
            ``against: labels`` compares outputs with the labels, which is what ``cross_entropy`` and a bare function do. ``adapter``:
            auto (a linear layer or 1x1 convolution where sizes differ and the loss needs them equal), none, linear, conv1x1 or conv3x3.
            ``hard_soft`` takes ``task``: its hard loss by name (cross_entropy).
        example: inputs of the networks, a tensor or a tuple, for a dry run; needed for terms with ``pairs``.
        output: what is compared of what a network returns, as in ``lambda result: result.logits``; None: what it returns.
        teacher_weights: of several teachers in the mean of their outputs; None: all the same.

    Attributes:
        output: the student's last output, without gradient.

    Raises:
        UserError: a term is wrong, a layer does not exist, or sizes do not fit.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | Mapping[str, nn.Module] | None,
        losses: Sequence[Line],
        example: Tensor | tuple[Any, ...] | None = None,
        output: Callable[[Any], Tensor] | None = None,
        teacher_weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        teachers = {"teacher": teacher} if isinstance(teacher, nn.Module) else dict(teacher or {})
        if any(network is student for network in teachers.values()):
            raise UserError("the student is also the teacher, which would be frozen: give a copy (copy.deepcopy).")
        # A plain dict, so that nn.Module does not take them for parts of this module.
        self._teachers = {name: network.eval().requires_grad_(False) for name, network in teachers.items()}
        self._output = output or (lambda result: result)
        self._teacher_weights = _means(teachers, teacher_weights)
        self._terms = [_term(line, index, list(teachers)) for index, line in enumerate(losses)]
        _check(self._terms, list(teachers))
        self.output: Tensor | None = None
        self._seen: _Seen | None = None
        self.adapters = nn.ModuleDict()
        if any(term.pairs for term in self._terms):
            if example is None:
                raise UserError(
                    "terms with pairs need example=..., inputs of the networks, to see what their layers give."
                )
            self._make_adapters(example if isinstance(example, tuple) else (example,))

    def forward(
        self, *inputs: Any, labels: Tensor | None = None, weights: Sequence[float] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Run the student and the teachers on the inputs; see :meth:`total`."""
        with self.watching():
            self.student(*inputs)
        return self.total(labels, weights)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """While this lasts, what the student is given and gives is noted, for :meth:`total`; it must run once.

        Raises:
            UserError: a layer did not run, or ran more than once.
        """
        self._seen = None
        with _noted(self.student, {student for term in self._terms for student, _ in term.pairs}, "student") as seen:
            yield
        self._seen = seen

    def total(
        self, labels: Tensor | None = None, weights: Sequence[float] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum and unweighted terms by name, for what the student did last.

        Args:
            labels: for terms that look at them.
            weights: of the terms in this step (:meth:`weights_at`), None: those of ``losses``. A term whose weight is 0 is not computed.

        Raises:
            UserError: nothing was watched, labels are missing, or a loss cannot be computed.
        """
        if self._seen is None:
            raise UserError("run the student first: with distiller.watching(): student(inputs).")
        seen, self._seen = self._seen, None
        self.output = self._output(seen.result).detach()
        if weights is None:
            weights = [term.weight for term in self._terms]
            if any(term.schedule is not None for term in self._terms):
                raise UserError("a loss has a schedule: give weights=distiller.weights_at(step, total_steps).")
        active = [(term, weight) for term, weight in zip(self._terms, weights, strict=True) if weight > 0]
        taught = self._run_teachers(seen, [term for term, _ in active])
        total, values = self._output(seen.result).new_zeros(()).float(), {}
        for term, weight in active:
            value = self._value(term, seen, taught, labels)
            total = total + weight * value
            values[term.name] = value.detach()
        return total, values

    def weights_at(self, step: int, total_steps: int) -> list[float]:
        """The weight of each term in optimizer step ``step`` of ``total_steps``, by the ``schedule`` of each."""
        return [weight_at(step, term, total_steps) for term in self._terms]

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> ModuleDistiller:
        for teacher in self._teachers.values():
            teacher._apply(fn)
        return super()._apply(fn, *args, **kwargs)

    @torch.no_grad()
    def _run_teachers(self, seen: _Seen, terms: Sequence[_Term]) -> dict[str, _Seen]:
        """What the teachers that are looked at give for the student's inputs."""
        taught = {}
        for name, teacher in self._teachers.items():
            looking = [term for term in terms if name in term.teachers]
            if looking:
                layers = {layer for term in looking for _, layer in term.pairs}
                with _noted(teacher.eval(), layers, name) as taught[name]:
                    teacher(*seen.inputs, **seen.named_inputs)
        return taught

    def _value(self, term: _Term, seen: _Seen, taught: Mapping[str, _Seen], labels: Tensor | None) -> Tensor:
        if term.wants_labels and labels is None:
            raise UserError(f"loss {term.name} looks at the labels: give labels=...")
        named = {"labels": labels} if term.has_labels_beside else {}
        compute = functools.partial(term.function, **term.keywords, **named)
        if term.task is not None:
            hard = in_full_precision(lambda x: term.task(x, labels), self._output(seen.result))
            compute = functools.partial(compute, hard)
        try:
            values = [in_full_precision(compute, *tensors) for tensors in self._compared(term, seen, taught, labels)]
        except (ValueError, RuntimeError) as error:
            raise UserError(f"loss {term.name}: {' '.join(str(error).split())}.") from error
        return values[0] if len(values) == 1 else torch.stack(values).mean()

    def _compared(
        self, term: _Term, seen: _Seen, taught: Mapping[str, _Seen], labels: Tensor | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The student's side and the other, of each thing that is compared."""
        if not term.pairs:
            own = self._output(seen.result)
            yield own, labels if term.against == "labels" else self._mean(taught, term.teachers)
            return
        (teacher,) = term.teachers
        for student_layer, teacher_layer in term.pairs:
            own, other = seen.maps[student_layer], taught[teacher].maps[teacher_layer]
            adapter = self._adapter(term, student_layer, teacher_layer)
            yield (own if adapter is None else in_full_precision(adapter, own, other)), other

    def _mean(self, taught: Mapping[str, _Seen], names: Sequence[str]) -> Tensor:
        whole = sum(self._teacher_weights[name] for name in names)
        return sum(self._output(taught[name].result) * (self._teacher_weights[name] / whole) for name in names)

    def _adapter(self, term: _Term, student: str, teacher: str) -> nn.Module | None:
        key = _key(term, student, teacher)
        return self.adapters[key] if key in self.adapters else None

    @torch.no_grad()
    def _make_adapters(self, example: tuple[Any, ...]) -> None:
        was_training = self.student.training
        layers = {student for term in self._terms for student, _ in term.pairs}
        with _noted(self.student.eval(), layers, "student") as seen:
            self.student(*example)
        self.student.train(was_training)
        taught = self._run_teachers(seen, [term for term in self._terms if term.pairs])
        for term in self._terms:
            for student, teacher in term.pairs:
                own, other = seen.maps[student], taught[term.teachers[0]].maps[teacher]
                adapter = _fitting(term, own, other, f"{student} - {teacher}")
                if adapter is not None:
                    self.adapters[_key(term, student, teacher)] = adapter.to(own.device)


@dataclass(frozen=True)
class _Term:
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


@dataclass
class _Seen:
    """What a network was given and gave in one pass."""

    inputs: tuple[Any, ...] = ()
    named_inputs: Mapping[str, Any] = field(default_factory=dict)
    result: Any = None
    maps: dict[str, Tensor] = field(default_factory=dict)
    runs: int = 0


@contextlib.contextmanager
def _noted(network: nn.Module, layers: set[str], name: str) -> Iterator[_Seen]:
    """While this lasts, note what goes into and out of a network and some of its layers; at the end all must have run once."""
    seen, modules = _Seen(), dict(network.named_modules())
    for layer in layers:
        if layer not in modules or not layer:
            near = difflib.get_close_matches(layer, list(modules), n=3, cutoff=0.3)
            hint = f" Near: {', '.join(near)}." if near else ""
            raise UserError(f"the {name} has no layer '{layer}'.{hint} named_modules() lists them all.")

    def note_inputs(module: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        seen.inputs, seen.named_inputs, seen.runs = inputs, named, seen.runs + 1

    def note_result(module: nn.Module, inputs: tuple[Any, ...], result: Any) -> None:
        seen.result = result

    def note_layer(layer: str, module: nn.Module, inputs: tuple[Any, ...], result: Any) -> None:
        value = result[0] if isinstance(result, (tuple, list)) else result
        if layer in seen.maps or not isinstance(value, Tensor):
            what = "runs more than once" if layer in seen.maps else f"gives a {type(value).__name__}, not a tensor"
            raise UserError(f"the {name}: the layer {layer} {what}; name another.")
        seen.maps[layer] = value.clone()  # a later in-place layer must not change it

    handles = [
        network.register_forward_pre_hook(note_inputs, with_kwargs=True),
        network.register_forward_hook(note_result),
        *(modules[layer].register_forward_hook(functools.partial(note_layer, layer)) for layer in layers),
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
    if seen.runs != 1:
        raise UserError(f"the {name} must run once, and ran {seen.runs} times.")
    silent = sorted(layers - seen.maps.keys())
    if silent:
        raise UserError(f"the {name}: the layers {', '.join(silent)} did not run; name others.")


class _Adapted(nn.Module):
    """A layer from the student's channels to the teacher's, and for maps bilinear interpolation to its size."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        student = self.layer(student)
        if student.ndim == 4 and student.shape[-2:] != teacher.shape[-2:]:
            return F.interpolate(student, size=teacher.shape[-2:], mode="bilinear", align_corners=False)
        return student


def _fitting(term: _Term, own: Tensor, other: Tensor, pair: str) -> nn.Module | None:
    """The adapter of a pair; None where none is wanted."""
    kind = term.adapter
    if kind == "auto":
        if not term.needs_equal or own.shape == other.shape:
            return None
        kind = "conv1x1" if own.ndim == 4 else "linear"
    if kind == "none":
        return None
    is_map = kind.startswith("conv")
    if own.ndim != other.ndim or is_map != (own.ndim == 4):
        raise UserError(
            f"loss {term.name}, {pair}: no {kind} adapter leads from {tuple(own.shape)} to {tuple(other.shape)}: name other layers."
        )
    if is_map:
        side = int(kind[-1])
        return _Adapted(nn.Conv2d(own.shape[1], other.shape[1], side, padding=side // 2))
    return _Adapted(nn.Linear(own.shape[-1], other.shape[-1]))


def _key(term: _Term, student: str, teacher: str) -> str:
    return f"{term.name}: {student} - {teacher}".replace(".", "/")


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


def _term(line: Line, index: int, teachers: list[str]) -> _Term:
    where = f"losses[{index}]"
    tree = dict(line) if isinstance(line, Mapping) else {"function": line}
    name, function = tree.get("type"), tree.get("function")
    if (name is None) == (function is None):
        raise UserError(f"{where}: give type, the name of a loss, or function, one of your own.")
    if name is not None:
        if name not in _named():
            raise UserError(
                f"{where}: there is no loss '{name}' of two tensors.{did_you_mean(str(name), _named())} Allowed: {', '.join(_named())}."
            )
        function = _named()[name]
    elif not callable(function):
        raise UserError(f"{where}: function: got {function!r}; expected something that can be called with two tensors.")
    keywords = {key: value for key, value in tree.items() if key not in _KEYS}
    _check_keywords(where, function, keywords, is_own=name is None)
    pairs = tree.get("pairs", ())
    pairs = tuple(pairs.items() if isinstance(pairs, Mapping) else (tuple(pair) for pair in pairs))
    by_labels = not pairs and (name in ("cross_entropy", None))
    against = tree.get("against", "labels" if by_labels else "teacher")
    if against not in ("teacher", "labels") or (against == "labels" and pairs):
        raise UserError(f"{where}: against is '{against}'; allowed: teacher, and for outputs labels.")
    named = tree.get("teacher")
    if named is not None and named not in teachers:
        raise UserError(f"{where}: there is no teacher '{named}'. Teachers: {', '.join(teachers) or 'none'}.")
    if against == "teacher" and (not teachers or (pairs and named is None and len(teachers) > 1)):
        raise UserError(f"{where} compares with a teacher; say which: {', '.join(teachers) or 'there is none'}.")
    adapter, weight = tree.get("adapter", "auto"), tree.get("weight", 1.0)
    if adapter not in _ADAPTERS or (adapter != "auto" and not pairs):
        raise UserError(f"{where}: adapter is '{adapter}'; allowed, for terms with pairs: {', '.join(_ADAPTERS)}.")
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not weight >= 0:
        raise UserError(f"{where}: weight is {weight!r}; expected a number of at least 0.")
    schedule = tree.get("schedule")
    entry = LOSSES.get(name) if name is not None else None
    return _Term(
        name=str(tree.get("name") or name or getattr(function, "__name__", type(function).__name__)),
        function=function,
        keywords=keywords,
        pairs=pairs,
        against=against,
        teachers=() if against == "labels" else ((named,) if named else tuple(teachers)),
        adapter=adapter,
        needs_equal=entry is None or entry.adapted,
        weight=float(weight),
        schedule=None if schedule is None else validate(WeightSchedule, dict(schedule), f"{where}.schedule"),
        task=_task(where, name, tree),
    )


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


def _means(teachers: Mapping[str, nn.Module], weights: Mapping[str, float] | None) -> Mapping[str, float]:
    if weights is not None and set(weights) != set(teachers):
        raise UserError(
            f"teacher_weights names {sorted(weights)}, but the teachers are {sorted(teachers)}: give one weight for each."
        )
    return dict.fromkeys(teachers, 1.0) if weights is None else dict(weights)


def _check(terms: Sequence[_Term], teachers: Sequence[str]) -> None:
    if not terms:
        raise UserError("a distiller without losses has nothing to do: give at least one.")
    repeated = sorted({t.name for i, t in enumerate(terms) if t.name in [other.name for other in terms[:i]]})
    if repeated:
        raise UserError(f"several losses are called {', '.join(repeated)}: give each a 'name' of its own.")
    idle = [name for name in teachers if not any(name in term.teachers for term in terms)]
    if idle:
        raise UserError(f"no loss looks at the teacher {', '.join(idle)}: add one, or leave it out.")
