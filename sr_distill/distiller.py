"""Distillation for people with their own training loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .contracts import Batch
from .errors import UserError
from .features import choose_pairs
from .models import ModelSpec, SRModel, Teacher
from .options import LossOptions, validate
from .options.losses import teachers_used
from .options.schema import FeatureOptions
from .train import DistillationTask, tap_teacher
from .train.schedule import weight_at

_PROBE = 32


class Distiller(nn.Module):
    """The objective of this package as a module: ``total, terms = distiller(lr, hr)``; ``total.backward()`` is yours.

    Its parameters are the student's and the adapters', so give ``distiller.parameters()`` to the optimizer. The teacher moves with
    the module (``.to``), and is in neither its parameters, its state dict nor its training mode.

    Args:
        student, teacher: any networks from RGB (B, 3, H, W) in [0, 1] to RGB (B, 3, H*scale, W*scale); the networks of this package
            (:class:`SRModel`) among them. Several teachers: a mapping from names to networks; terms against the teacher compare
            with the mean of their outputs, or with one of them (``"teacher": name``).
        losses: terms as in the options of a run: ``{"type": "fitnet", "weight": 0.1}``, ...
        pairs: for terms on features: "auto", or (student's layer, teacher's layer) by module path.
        count: "auto": how many pairs, at most.
        adapter: conv1x1, conv3x3 or none.
        self_ensemble: average the teacher's output over 8 flips and turns.
        shares: weight of each of several teachers in the mean of their outputs; None: all the same.

    Raises:
        UserError: an option is wrong, a layer does not exist, or the two networks have different scales.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | Mapping[str, nn.Module],
        losses: Sequence[Mapping[str, Any]],
        pairs: str | Sequence[tuple[str, str]] = "auto",
        count: int = 3,
        adapter: str = "conv1x1",
        self_ensemble: bool = False,
        shares: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        terms = [validate(LossOptions, dict(loss), f"losses[{index}]") for index, loss in enumerate(losses)]
        named = pairs if isinstance(pairs, str) else [{"student": s, "teacher": t} for s, t in pairs]
        features = validate(FeatureOptions, {"pairs": named, "count": count, "adapter": adapter}, "Distiller")
        wrapped = _as_model(student, "student")
        given = {"teacher": teacher} if isinstance(teacher, nn.Module) else dict(teacher)
        teachers = {name: Teacher(_as_model(net, name), self_ensemble) for name, net in given.items()}
        for name, frozen in teachers.items():
            if wrapped.spec.scale != frozen.spec.scale:
                raise UserError(f"the student has scale {wrapped.spec.scale} and the {name} {frozen.spec.scale}.")
        _check(terms, list(teachers), shares)
        looked_at = {name: [term for term in terms if term.looks_at(name)] for name in teachers}
        self.pairs = {
            name: choose_pairs(wrapped, frozen.model, features)
            for name, frozen in teachers.items()
            if any(term.on == "features" for term in looked_at[name])
        }
        self.task = DistillationTask(wrapped, terms, self.pairs, shares or dict.fromkeys(teachers, 1.0))
        # A plain dict, so that nn.Module does not take them for parts of this module.
        self._teachers = {
            name: tap_teacher(frozen, name, self.pairs.get(name, ()), terms)
            for name, frozen in teachers.items()
            if looked_at[name]
        }

    @property
    def student(self) -> nn.Module:
        """The network that is trained, as it was given."""
        return self.task.student.net

    def weights_at(self, step: int, total_steps: int) -> list[float]:
        """The weight of each term in optimizer step ``step`` of ``total_steps``, by the ``schedule`` of each."""
        return [weight_at(step, term, total_steps) for term in self.task.losses]

    def forward(
        self, lr: Tensor, hr: Tensor, weights: Sequence[float] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum and unweighted terms by name, for RGB (B, 3, h, w) and (B, 3, h*scale, w*scale) in [0, 1].

        Args:
            weights: of the terms in this step; None: those of ``losses``.
        """
        return self.task(Batch(lr, hr), {name: teacher(lr) for name, teacher in self._teachers.items()}, weights)

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Distiller:
        for teacher in self._teachers.values():
            teacher._apply(fn)
        return super()._apply(fn, *args, **kwargs)


def _check(terms: Sequence[LossOptions], teachers: list[str], shares: Mapping[str, float] | None) -> None:
    try:
        teachers_used(terms, teachers)
    except ValueError as error:
        raise UserError(f"losses: {error}.") from error
    if any(term.source == "peers" for term in terms):
        raise UserError(
            "losses: against peers is for runs with peers in their options; give the other network as teacher."
        )
    if shares is not None and set(shares) != set(teachers):
        raise UserError(
            f"shares names {sorted(shares)}, but the teachers are {sorted(teachers)}: give one weight for each."
        )


@torch.no_grad()
def _as_model(net: nn.Module, name: str) -> SRModel:
    """Any network as an :class:`SRModel`; its scale is what a dry run gives."""
    if isinstance(net, SRModel):
        return net
    was_training = net.training
    example = next(net.parameters(), torch.zeros(()))
    out = net.eval()(torch.zeros(1, 3, _PROBE, _PROBE, dtype=example.dtype, device=example.device))
    net.train(was_training)
    return SRModel(net, ModelSpec(name=name, scale=out.shape[-1] // _PROBE)).train(was_training)
