"""Contrastive representation distillation: which map of the teacher is of the same image as this one of the student?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..features import FeaturePair
from ..precision import in_full_precision
from ..samples import all_samples
from .base import FeatureLoss, LossInputs, register_loss
from .common import unit

_EPS = 1e-7


def contrastive_representation(
    student: Tensor,
    teacher: Tensor,
    negatives_of_student: Tensor,
    negatives_of_teacher: Tensor,
    temperature: float = 0.07,
    total: int | None = None,
) -> Tensor:
    """Noise-contrastive estimation in both directions: a sample of the other network, is it of the same image?

    With e = exp(<anchor, x> / T) of the positive (k = 0) and K negatives, P = e / (N mean e), c = K / N:
    ``-1/B sum_b (log P_b0 / (P_b0 + c + eps) + sum_k log c / (P_bk + c + eps))``, eps = 1e-7, for student anchors among the
    teacher's embeddings plus for teacher anchors among the student's. What an anchor is compared with, and mean e, are constants, as in the
    authors' code, where they come from a memory: gradients reach anchors alone.

    Args:
        student, teacher: (B, D) embeddings of unit length; row i of both is of the same image.
        negatives_of_student, negatives_of_teacher: (B, K, D), of other images.
        temperature: T.
        total: N, the number of images; but for eps it cancels. None: K + 1.

    Source: Tian et al., "Contrastive Representation Distillation", ICLR 2020, equations 9 to 18, and its repository.
    """
    return _one_way(student, teacher, negatives_of_teacher, temperature, total) + _one_way(
        teacher, student, negatives_of_student, temperature, total
    )


def _one_way(anchor: Tensor, positive: Tensor, negatives: Tensor, temperature: float, total: int | None) -> Tensor:
    others = torch.cat([positive[:, None], negatives], 1).detach()
    count = negatives.shape[1]
    total = count + 1 if total is None else total
    logits = torch.einsum("bd,bkd->bk", anchor, others) / temperature
    # P, with the largest exponent taken out of e and of its mean.
    scores = (logits - logits.detach().max()).exp()
    p = scores / (total * scores.mean().detach())
    noise = count / total
    log_positive = (p[:, 0] / (p[:, 0] + noise + _EPS)).clamp_min(torch.finfo(p.dtype).tiny).log()
    log_negative = (noise / (p[:, 1:] + noise + _EPS)).log()
    return -(log_positive.sum() + log_negative.sum()) / len(anchor)


@register_loss(contrastive_representation)
class ContrastiveRepresentation(FeatureLoss):
    """Contrastive representation distillation (Tian et al. 2020): pooled maps, of the same image or not."""

    adapted: ClassVar[bool] = False
    type: Literal["contrastive_representation"] = Field(description="Name of the loss.")
    against: Literal["teacher"] = Field("teacher", description="The teacher's.")
    dimensions: int = Field(
        128, ge=1, le=4096, description="Of the embeddings, into which a linear layer each takes pooled maps."
    )
    temperature: float = Field(0.07, gt=0, description="Temperature of the similarities.")
    memory: int = Field(
        0,
        ge=0,
        le=65536,
        description="Embeddings of earlier images that are kept as further negatives; 0: those of the batch alone.",
    )

    @property
    def least_batch(self) -> int:
        """Two: others are needed to be told from."""
        return 2

    def arguments(self, inputs: LossInputs, student: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        """Not used: see :class:`Embeddings`."""
        raise NotImplementedError

    def build(self, pairs: Sequence[FeaturePair], seed: int) -> nn.Module:
        """See :class:`Embeddings`."""
        return Embeddings(self, pairs)


class Embeddings(nn.Module):
    """The term: maps averaged over their places, a linear layer each to unit length, and :func:`contrastive_representation`.

    Negatives of an image are the other images of the batch (of all processes), and ``memory`` earlier ones, oldest out first, which is
    kept in checkpoints. Mean over the pairs.
    """

    remembers_samples = True

    def __init__(self, options: ContrastiveRepresentation, pairs: Sequence[FeaturePair]) -> None:
        super().__init__()
        self.options, size = options, options.dimensions
        self.student = nn.ModuleList(nn.Linear(pair.student.channels, size) for pair in pairs)
        self.teacher = nn.ModuleList(nn.Linear(pair.teacher.channels, size) for pair in pairs)
        # Newest last; what is not there yet is 0 and left out.
        self.register_buffer("memory", torch.zeros(len(pairs), 2, options.memory, size))

    def forward(self, inputs: LossInputs) -> Tensor:
        """The unweighted term."""
        values = [self._of_pair(index, maps.student, maps.teacher) for index, maps in enumerate(inputs.maps)]
        return torch.stack(values).mean()

    def _of_pair(self, index: int, student: Tensor, teacher: Tensor) -> Tensor:
        pooled = (x.float().mean((2, 3)) for x in (student, teacher))
        heads = self.student[index], self.teacher[index]
        s, t = (all_samples(unit(in_full_precision(head, x), 1)) for head, x in zip(heads, pooled))
        negatives = self._negatives(s, index, 0), self._negatives(t, index, 1)
        value = contrastive_representation(s, t, *negatives, self.options.temperature)
        if self.training and self.options.memory:
            self._remember(index, s, t)
        return value

    def _negatives(self, own: Tensor, index: int, side: int) -> Tensor:
        """(B, K, D): for each image the others', and what is remembered."""
        count = len(own)
        other = (
            torch.arange(count - 1, device=own.device)[None] + torch.arange(1, count + 1, device=own.device)[:, None]
        )
        others = own.detach()[other % count]
        memory = self.memory[index, side]
        remembered = memory[memory.any(1)]
        return torch.cat([others, remembered.expand(count, *remembered.shape)], 1)

    @torch.no_grad()
    def _remember(self, index: int, *sides: Tensor) -> None:
        for memory, new in zip(self.memory[index], sides):
            memory.copy_(torch.cat([memory, new])[-len(memory) :])
