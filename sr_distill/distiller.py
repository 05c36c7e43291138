"""Distillation for people with their own training loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .contracts import Batch
from .errors import UserError
from .features import TappedTeacher, choose_pairs
from .models import ModelSpec, SRModel, Teacher
from .options import LossOptions, validate
from .options.schema import FeatureOptions
from .train import DistillationTask

_PROBE = 32


class Distiller(nn.Module):
    """The objective of this package as a module: ``total, terms = distiller(lr, hr)``; ``total.backward()`` is yours.

    Its parameters are the student's and the adapters', so give ``distiller.parameters()`` to the optimizer. The teacher moves with
    the module (``.to``), and is in neither its parameters, its state dict nor its training mode.

    Args:
        student, teacher: any networks from RGB (B, 3, H, W) in [0, 1] to RGB (B, 3, H*scale, W*scale); the networks of this package
            (:class:`SRModel`) among them.
        losses: terms as in the options of a run: ``{"type": "fitnet", "weight": 0.1}``, ...
        pairs: for terms on features: "auto", or (student's layer, teacher's layer) by module path.
        count: "auto": how many pairs, at most.
        adapter: conv1x1, conv3x3 or none.
        self_ensemble: average the teacher's output over 8 flips and turns.

    Raises:
        UserError: an option is wrong, a layer does not exist, or the two networks have different scales.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        losses: Sequence[Mapping[str, Any]],
        pairs: str | Sequence[tuple[str, str]] = "auto",
        count: int = 3,
        adapter: str = "conv1x1",
        self_ensemble: bool = False,
    ) -> None:
        super().__init__()
        terms = [validate(LossOptions, dict(loss), f"losses[{index}]") for index, loss in enumerate(losses)]
        named = pairs if isinstance(pairs, str) else [{"student": s, "teacher": t} for s, t in pairs]
        features = validate(FeatureOptions, {"pairs": named, "count": count, "adapter": adapter}, "Distiller")
        wrapped, frozen = _as_model(student, "student"), Teacher(_as_model(teacher, "teacher"), self_ensemble)
        if wrapped.spec.scale != frozen.spec.scale:
            raise UserError(f"the student has scale {wrapped.spec.scale} and the teacher {frozen.spec.scale}.")
        uses_features = any(term.on == "features" for term in terms)
        self.pairs = choose_pairs(wrapped, frozen.model, features) if uses_features else []
        self.task = DistillationTask(wrapped, terms, self.pairs, adapter)
        # In a list, so that nn.Module does not take it for a part of this module.
        self._teacher = [TappedTeacher(frozen, [pair.teacher.path for pair in self.pairs])]

    @property
    def student(self) -> nn.Module:
        """The network that is trained, as it was given."""
        return self.task.student.net

    def forward(
        self, lr: Tensor, hr: Tensor, weights: Sequence[float] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum and unweighted terms by name, for RGB (B, 3, h, w) and (B, 3, h*scale, w*scale) in [0, 1].

        Args:
            weights: of the terms in this step; None: those of ``losses``.
        """
        return self.task(Batch(lr, hr), self._teacher[0](lr), weights)

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Distiller:
        self._teacher[0]._apply(fn)
        return super()._apply(fn, *args, **kwargs)


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
