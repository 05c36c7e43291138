"""Everything trainable in one module, and the objective as a dictionary of named terms."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..contracts import Batch
from ..data.color import with_luma_of
from ..losses import LOSSES
from ..models import SRModel, Teacher
from ..options import LossOptions


class DistillationTask(nn.Module):
    """The student and the objective. The teacher stays outside: it is not trained, saved or distributed.

    ``forward`` returns the sum ``sum_i weight_i term_i`` and the unweighted terms by name. Distributed training and
    compilation wrap this module, so that whatever is trainable is inside.

    Args:
        student: the model to train.
        losses: the terms of the objective.

    Raises:
        UserError: a term needs pretrained weights that cannot be had.
    """

    def __init__(self, student: SRModel, losses: Sequence[LossOptions]) -> None:
        super().__init__()
        self.student = student
        self.terms = list(losses)
        self.losses = nn.ModuleList(LOSSES[term.type](term) for term in losses)

    def forward(self, batch: Batch, teacher_sr: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Total and terms for one batch; ``teacher_sr`` (B, 3, H, W) in [0, 1] is needed by terms against the teacher."""
        sr = self.student(batch.lr)
        targets = {"hr": self._reachable(batch.hr, sr)}
        if teacher_sr is not None:
            targets["teacher"] = self._reachable(teacher_sr, sr)
        total, values = sr.new_zeros(()), {}
        for term, loss in zip(self.terms, self.losses):
            value = loss(sr, targets[term.against])
            values[term.label] = value.detach()
            total = total + term.weight * value
        return total, values

    def _reachable(self, target: Tensor, sr: Tensor) -> Tensor:
        """For a luma student: the target's luma on the student's (bicubic) chroma, which is not the student's to change."""
        return target if self.student.spec.color == "rgb" else with_luma_of(sr.detach(), target)


def teacher_output(batch: Batch, teacher: Teacher | None) -> Tensor | None:
    """The teacher's image for a batch: the stored one if there is one, or computed now."""
    if batch.teacher_sr is not None:
        return batch.teacher_sr
    return None if teacher is None else teacher(batch.lr)


def term_vector(total: Tensor, terms: dict[str, Tensor]) -> Tensor:
    """Total and terms as one detached vector, total first: what the loop keeps of a step without waiting for the device."""
    return torch.stack([total.detach(), *terms.values()])
