"""Everything trainable in one module, and the objective as a dictionary of named terms."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..contracts import Batch, Prediction
from ..data.color import with_luma_of
from ..features import Adapter, FeaturePair, Taps
from ..losses import LOSSES
from ..models import SRModel
from ..options import LossOptions


class DistillationTask(nn.Module):
    """The student, the adapters of its feature maps, and the objective.

    The teacher stays outside: it is not trained, saved or distributed. ``forward`` returns the sum
    ``sum_i weight_i term_i`` and the unweighted terms by name. Distributed training and compilation wrap this module, so that
    whatever is trainable is inside.

    Args:
        student: the model to train.
        losses: the terms of the objective.
        pairs: the layers that terms on features compare; a term is the mean over the pairs.
        adapter: kind of the adapters (conv1x1, conv3x3, none).

    Raises:
        UserError: a term needs pretrained weights that cannot be had, or a pair does not fit the adapter.
    """

    def __init__(
        self,
        student: SRModel,
        losses: Sequence[LossOptions],
        pairs: Sequence[FeaturePair] = (),
        adapter: str = "conv1x1",
    ) -> None:
        super().__init__()
        self.student = student
        self.terms = list(losses)
        self.losses = nn.ModuleList(LOSSES[term.type](term) for term in losses)
        self.pairs = list(pairs)
        self.taps = Taps(student, [pair.student.path for pair in pairs]) if pairs else None
        adapted = any(term.on == "features" and _is_adapted(loss) for term, loss in zip(self.terms, self.losses))
        self.adapters = nn.ModuleList(Adapter(pair, adapter) for pair in pairs if adapted)

    def forward(
        self, batch: Batch, teacher: Prediction | None = None, weights: Sequence[float] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Total and terms for one batch.

        Args:
            teacher: what terms that look at the teacher are compared with.
            weights: of the terms in this step; None: those of the options.
        """
        student = self._predict(batch.lr)
        images = {"hr": self._reachable(batch.hr, student.sr)}
        if teacher is not None and teacher.sr is not None:
            images["teacher"] = self._reachable(teacher.sr, student.sr)
        maps = self._maps(student, teacher) if self.pairs and teacher is not None else []
        total, values = student.sr.new_zeros(()), {}
        weights = [term.weight for term in self.terms] if weights is None else weights
        for term, loss, weight in zip(self.terms, self.losses, weights):
            if term.on == "sr":
                value = loss(student.sr, images[term.against])
            else:
                adapted = _is_adapted(loss)
                value = torch.stack(
                    [loss(fitted if adapted else plain, target) for plain, fitted, target in maps]
                ).mean()
            values[term.label] = value.detach()
            total = total + weight * value
        return total, values

    def _predict(self, lr: Tensor) -> Prediction:
        if self.taps is None:
            return Prediction(self.student(lr))
        return Prediction(*self.taps.run(lr))

    def _maps(self, student: Prediction, teacher: Prediction) -> list[tuple[Tensor, Tensor | None, Tensor]]:
        """For each pair: the student's map, the same adapted to the teacher's, and the teacher's."""
        maps = []
        for index, pair in enumerate(self.pairs):
            plain, target = student.features[pair.student.path], teacher.features[pair.teacher.path]
            maps.append((plain, self.adapters[index](plain, target) if self.adapters else None, target))
        return maps

    def _reachable(self, target: Tensor, sr: Tensor) -> Tensor:
        """For a luma student: the target's luma on the student's (bicubic) chroma, which is not the student's to change."""
        return target if self.student.spec.color == "rgb" else with_luma_of(sr.detach(), target)


def _is_adapted(loss: nn.Module) -> bool:
    """Losses that compare value by value take adapted maps; those that do not say so."""
    return getattr(loss, "adapted", True)


def term_vector(total: Tensor, terms: dict[str, Tensor]) -> Tensor:
    """Total and terms as one detached vector, total first: what the loop keeps of a step without waiting for the device."""
    return torch.stack([total.detach(), *terms.values()])
