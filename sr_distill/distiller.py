"""Distillation for people with their own training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from .contracts import Batch
from .errors import UserError
from .losses import Loss
from .models import SRModel, Teacher, as_model, share_weights
from .options import LossOptions, validate
from .options.losses import (
    TermOptions,
    check_balances,
    check_names,
    check_shares,
    check_weights,
    idle_in,
    teachers_used,
)
from .options.sections import FeatureOptions
from .train import build_task, find_weights, tap_teachers

Pairs = str | Sequence[tuple[str, str]]


class Distiller(nn.Module):
    """The objective of this package as a module: ``total, terms = distiller(lr, hr)``; ``total.backward()`` is yours.

    Its parameters are the student's and the adapters', so give ``distiller.parameters()`` to the optimizer. The teacher moves with
    the module (``.to``), and is in neither its parameters, its state dict nor its training mode.

    Args:
        student, teacher: any networks from RGB (B, 3, H, W) in [0, 1] to RGB (B, 3, H*scale, W*scale); the networks of this package
            (:class:`SRModel`) among them. Several teachers: a mapping from names to networks; terms against the teacher compare
            with the mean of their outputs, or with one of them (``"teacher": name``). None: no teacher.
        losses: terms as in the options of a run: ``{"type": "fitnet", "weight": 0.1}``, ...; or functions of the student's output and of HR,
            both RGB (B, 3, H, W) in [0, 1], that give a scalar. ``{"function": f, "against": "teacher", "weight": 0.1}`` compares with
            something else, with ``"on": "features"`` adapted maps with the teacher's.
        pairs: for terms on features: "auto", or (student's layer, teacher's layer) by module path; of several teachers also a mapping
            from their names to either.
        count: "auto": how many pairs, at most.
        adapter: conv1x1, conv3x3 or none.
        normalise: "teacher": maps are compared in units of the deviation of the teacher's.
        self_ensemble: average the teacher's output over 8 flips and turns.
        teacher_weights: weight of each of several teachers in the mean of their outputs; None: all the same.
        peers: further students, trained along (mutual learning); terms ``"against": "peers"`` compare each with all others. They are
            called peer_1, peer_2, ...: ``"student": "peer_1"`` makes a term that one's alone.

    Raises:
        UserError: an option is wrong, a layer does not exist, or the two networks have different scales.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | Mapping[str, nn.Module] | None,
        losses: Sequence[Mapping[str, Any] | Callable[[Tensor, Tensor], Tensor]],
        pairs: Pairs | Mapping[str, Pairs] = "auto",
        count: int = 3,
        adapter: str = "conv1x1",
        self_ensemble: bool = False,
        teacher_weights: Mapping[str, float] | None = None,
        normalise: str = "none",
        peers: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__()
        terms = [_as_term(loss, index) for index, loss in enumerate(losses)]
        given = {"teacher": teacher} if isinstance(teacher, nn.Module) else dict(teacher or {})
        own = {"student": student, **{f"peer_{number}": peer for number, peer in enumerate(peers, start=1)}}
        students = {name: as_model(net, name) for name, net in own.items()}
        imitated = {name: as_model(net, name) for name, net in given.items()}
        _check_networks(students, imitated)
        teachers = {name: Teacher(model, self_ensemble) for name, model in imitated.items()}  # frozen from here on
        shared = {"count": count, "adapter": adapter, "normalise": normalise}
        features = _features(pairs, shared, list(teachers))
        _check(terms, list(teachers), list(students), teacher_weights)
        _check_use(terms, features, teachers, self_ensemble)
        # Plain dicts, so that nn.Module does not take them for parts of this module.
        self._given = own
        self.task = build_task(students, teachers, terms, features.__getitem__, teacher_weights)
        self._teachers = tap_teachers(self.task, teachers)

    @property
    def peers(self) -> list[nn.Module]:
        """The networks that are trained along, as they were given."""
        return [network for name, network in self._given.items() if name != "student"]

    @property
    def student(self) -> nn.Module:
        """The network that is trained, as it was given."""
        return self._given["student"]

    def weights_at(self, step: int, total_steps: int) -> list[float]:
        """The weight of each term in optimizer step ``step`` of ``total_steps``, by the ``schedule`` of each."""
        return self.task.weights_at(step, total_steps)

    def forward(
        self, lr: Tensor, hr: Tensor, weights: Sequence[float] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum and unweighted terms by name, for RGB (B, 3, h, w) and (B, 3, h*scale, w*scale) in [0, 1].

        The networks run under the caller's autocast; losses are computed in float32 all the same.

        Args:
            weights: of the terms in this step (:meth:`weights_at`), None: those of ``losses``. A term whose weight is 0 is not computed.

        Raises:
            UserError: a term has a schedule, and ``weights`` does not say where in it this step is.
        """
        if weights is None:
            if any(term.loss.schedule is not None for term in self.task.terms):
                raise UserError("a loss has a schedule: give weights=distiller.weights_at(step, total_steps).")
            weights = self.weights_at(self._late, self._late + 1)
        for term, weight in zip(self.task.terms, weights, strict=True):
            if weight > 0 and term.is_unbalanced:
                raise UserError(f"loss {term.label} has balance: call distiller.balance(batches) before this step.")
        batch = Batch(lr, hr)
        return self.task(batch, self.task.given_by(self._teachers, batch, weights), weights)

    def balance(
        self, batches: Iterable[tuple[Tensor, Tensor]], weights: Sequence[float] | None = None
    ) -> dict[str, float]:
        """Find the weights of losses with ``balance`` from the gradients in some batches of ``(lr, hr)``; returns them by name.

        Of several processes (DDP) each calls it, with as many batches: they find the same.

        Args:
            weights: of all terms in the coming step (:meth:`weights_at`), where a loss has a schedule; one whose weight is 0 there is left.

        Raises:
            UserError: a gradient is zero or not finite.
        """
        weights = self.weights_at(self._late, self._late + 1) if weights is None else weights
        return find_weights(self.task, self._teachers, [Batch(lr, hr) for lr, hr in batches], weights)

    @property
    def _late(self) -> int:
        """A step in which all terms without a schedule count."""
        return max((term.loss.counts_from for term in self.task.terms), default=0)

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Distiller:
        for teacher in self._teachers.values():
            teacher._apply(fn)
        return super()._apply(fn, *args, **kwargs)


def _as_term(loss: Mapping[str, Any] | Callable[[Tensor, Tensor], Tensor], index: int) -> TermOptions:
    """A line of the options, or a function, as a term."""
    tree = dict(loss) if isinstance(loss, Mapping) else {"function": loss}
    function = tree.pop("function", None)
    where = f"losses[{index}]"
    if function is None:
        return validate(LossOptions, tree, where)
    if not callable(function):
        raise UserError(f"{where}: function: got {function!r}; expected something that can be called with two tensors.")
    name = getattr(function, "__name__", type(function).__name__)
    called = {"__doc__": f"The function {name}.", "function": staticmethod(function)}
    kind = type("FunctionLoss", (Loss,), {**called, "__module__": __name__})
    return validate(kind, {"type": name, **tree}, where)


class _FeaturesOf(dict[str, FeatureOptions]):
    """Which maps are compared with those of each teacher; those of a peer as ``pairs`` says of all."""

    def __init__(self, of_all: FeatureOptions) -> None:
        super().__init__()
        self.of_all = of_all

    def __missing__(self, name: str) -> FeatureOptions:
        return self.of_all


def _features(pairs: Pairs | Mapping[str, Pairs], shared: Mapping[str, Any], teachers: Sequence[str]) -> _FeaturesOf:
    def options(chosen: Pairs) -> FeatureOptions:
        named = chosen if isinstance(chosen, str) else [{"student": s, "teacher": t} for s, t in chosen]
        return validate(FeatureOptions, {"pairs": named, **shared}, "Distiller")

    if not isinstance(pairs, Mapping):
        return _FeaturesOf(options(pairs))
    unknown = [name for name in pairs if name not in teachers]
    if unknown:
        raise UserError(f"pairs names {', '.join(unknown)}, but the teachers are {', '.join(teachers) or 'none'}.")
    found = _FeaturesOf(options("auto"))
    found.update({name: options(chosen) for name, chosen in pairs.items()})
    return found


def _check_networks(students: Mapping[str, SRModel], teachers: Mapping[str, SRModel]) -> None:
    student = students["student"]
    for name, other in {**students, **teachers}.items():
        if student.spec.scale != other.spec.scale:
            raise UserError(f"the student has scale {student.spec.scale} and the {name} {other.spec.scale}.")
    trained = [model.net for model in students.values()]
    if len({id(net) for net in trained}) < len(trained):
        raise UserError("one network is there twice among the student and its peers: give a copy (copy.deepcopy).")
    for name, teacher in teachers.items():
        if any(share_weights(teacher.net, net) for net in trained):
            raise UserError(
                f"weights of a student are also the {name}'s, and would be frozen: give a copy (copy.deepcopy)."
            )


def _check(
    terms: Sequence[TermOptions],
    teachers: list[str],
    students: list[str],
    teacher_weights: Mapping[str, float] | None,
) -> None:
    try:
        teachers_used(terms, teachers)
        check_balances(terms, students)
        check_names(terms, students)
        if terms:
            check_weights(terms, students, 1 + max(term.counts_from for term in terms))
    except ValueError as error:
        raise UserError(f"losses: {error}.") from error
    among_peers = any(term.source == "peers" for term in terms)
    if among_peers != (len(students) > 1):
        raise UserError("losses: terms against peers need peers=[...], and peers need such terms.")
    check_shares(teacher_weights, teachers)


def _check_use(terms: Sequence[TermOptions], features: _FeaturesOf, teachers: Mapping[str, Teacher], x8: bool) -> None:
    """What has no effect is refused, as in the options of a run."""
    unused = [name for name in teachers if not any(term.looks_at(name) for term in terms)]
    idle = [f"the teacher {name}" for name in unused]
    said = [features.of_all, *features.values()]
    on_maps = [term for term in terms if term.reads_maps]
    if any(options != FeatureOptions() for options in said) and not on_maps:
        idle.append("pairs, count, adapter or normalise")
    elif on_maps:
        idle += idle_in(features.of_all, on_maps)
    if x8 and all(term.reads_maps or term.source != "teacher" for term in terms):
        idle.append("self_ensemble")
    if not terms:
        idle.append("a distiller without losses")
    if idle:
        raise UserError(f"{' and '.join(idle)} has no effect: no loss looks at it.")
