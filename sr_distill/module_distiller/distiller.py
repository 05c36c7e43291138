"""An objective over the outputs and layers of any networks."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..models import share_weights
from ..options.losses import check_shares
from ..precision import in_full_precision
from ..train.schedule import weight_at
from .adapters import fitting
from .passes import Pass, noted
from .terms import Line, Term, check_terms, read_term


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
        for name, network in teachers.items():
            if share_weights(network, student):
                raise UserError(
                    f"weights of the student are also the {name}'s, and would be frozen: give a copy (copy.deepcopy)."
                )
        # A plain dict, so that nn.Module does not take them for parts of this module.
        self._teachers = {name: network.eval().requires_grad_(False) for name, network in teachers.items()}
        self._output = output or (lambda result: result)
        self._teacher_weights = _means(teachers, teacher_weights)
        self._terms = [read_term(line, index, list(teachers)) for index, line in enumerate(losses)]
        check_terms(self._terms, list(teachers))
        self.output: Tensor | None = None
        self._seen: Pass | None = None
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
        with noted(self.student, {student for term in self._terms for student, _ in term.pairs}, "student") as seen:
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

    @property
    def has_schedules(self) -> bool:
        """Whether a weight depends on the step."""
        return any(term.schedule is not None for term in self._terms)

    def weights_at(self, step: int, total_steps: int) -> list[float]:
        """The weight of each term in optimizer step ``step`` of ``total_steps``, by the ``schedule`` of each."""
        return [weight_at(step, term, total_steps) for term in self._terms]

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> ModuleDistiller:
        for teacher in self._teachers.values():
            teacher._apply(fn)
        return super()._apply(fn, *args, **kwargs)

    @torch.no_grad()
    def _run_teachers(self, seen: Pass, terms: Sequence[Term]) -> dict[str, Pass]:
        """What the teachers that are looked at give for the student's inputs."""
        taught = {}
        for name, teacher in self._teachers.items():
            looking = [term for term in terms if name in term.teachers]
            if looking:
                layers = {layer for term in looking for _, layer in term.pairs}
                with noted(teacher.eval(), layers, name) as taught[name]:
                    teacher(*seen.inputs, **seen.named_inputs)
        return taught

    def _value(self, term: Term, seen: Pass, taught: Mapping[str, Pass], labels: Tensor | None) -> Tensor:
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
        self, term: Term, seen: Pass, taught: Mapping[str, Pass], labels: Tensor | None
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

    def _mean(self, taught: Mapping[str, Pass], names: Sequence[str]) -> Tensor:
        whole = sum(self._teacher_weights[name] for name in names)
        return sum(self._output(taught[name].result) * (self._teacher_weights[name] / whole) for name in names)

    def _adapter(self, term: Term, student: str, teacher: str) -> nn.Module | None:
        key = _key(term, student, teacher)
        return self.adapters[key] if key in self.adapters else None

    @torch.no_grad()
    def _make_adapters(self, example: tuple[Any, ...]) -> None:
        was_training = self.student.training
        layers = {student for term in self._terms for student, _ in term.pairs}
        with noted(self.student.eval(), layers, "student") as seen:
            self.student(*example)
        self.student.train(was_training)
        taught = self._run_teachers(seen, [term for term in self._terms if term.pairs])
        for term in self._terms:
            for student, teacher in term.pairs:
                own, other = seen.maps[student], taught[term.teachers[0]].maps[teacher]
                adapter = fitting(term, own, other, f"{student} - {teacher}")
                if adapter is not None:
                    self.adapters[_key(term, student, teacher)] = adapter.to(own.device)


def _key(term: Term, student: str, teacher: str) -> str:
    return f"{term.name}: {student} - {teacher}".replace(".", "/")


def _means(teachers: Mapping[str, nn.Module], weights: Mapping[str, float] | None) -> Mapping[str, float]:
    check_shares(weights, list(teachers))
    return dict.fromkeys(teachers, 1.0) if weights is None else dict(weights)
