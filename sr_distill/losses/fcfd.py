"""Function-consistent feature distillation: what the later layers of both networks make of the maps."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..features import Adapter, FeaturePair
from ..registry import LOSSES
from .activation import fitnet
from .base import FeatureLoss, LossInputs
from .common import in_full_precision
from .pixel import l1, mse


@LOSSES.register
class FCFD(FeatureLoss):
    """Function-consistent feature distillation (Liu et al. 2023): how later layers of both networks read the maps."""

    type: Literal["fcfd"] = Field(description="Name of the loss.")
    against: Literal["teacher"] = Field("teacher", description="The teacher's.")
    appearance: float = Field(1.0, ge=0, description="Factor of the squared difference of adapted maps.")
    student_to_teacher: float = Field(
        1.0, ge=0, description="Factor of the paths that begin in the student and cross into the teacher."
    )
    teacher_to_student: float = Field(
        1.0, ge=0, description="Factor of the paths that begin in the teacher and cross into the student."
    )
    paths: int = Field(1, ge=1, le=8, description="Random paths of each of the two kinds in a step.")
    distance: Literal["l1", "l2"] = Field("l1", description="Between the image of a path and the teacher's own.")

    @model_validator(mode="after")
    def _something(self) -> FCFD:
        if self.appearance == self.student_to_teacher == self.teacher_to_student == 0:
            raise ValueError("every part of fcfd has factor 0: nothing would be learned")
        if self.student_to_teacher == self.teacher_to_student == 0 and (self.paths, self.distance) != (1, "l1"):
            raise ValueError("paths and distance have no effect where student_to_teacher and teacher_to_student are 0")
        return self

    @property
    def replays_teacher(self) -> bool:
        """Paths that begin in the student end in the teacher, and every image is compared with the teacher's own."""
        return self.student_to_teacher > 0 or self.teacher_to_student > 0

    @property
    def replays_student(self) -> bool:
        """Paths that begin in the teacher end in the student."""
        return self.teacher_to_student > 0

    def build(self, pairs: Sequence[FeaturePair], seed: int) -> nn.Module:
        """See :class:`MixedPaths`."""
        return MixedPaths(self, pairs, seed)


class MixedPaths(nn.Module):
    """``a mean_k |A_k s_k - t_k|^2 + b F(student to teacher) + c F(teacher to student)``.

    The first term (appearance) compares the maps s_k, t_k of each pair as FitNet does; A_k is the adapter. F is the mean over random
    mixed paths: the map of one network at a random pair crosses into the other network there, through an adapter (of its own in the
    direction of the student), and that network goes on with it. The image at the end is compared with the teacher's own (L1 or
    squared); on the way from student to teacher, so is the map at each later pair (mean of the squared differences). In the paper the
    image is a class distribution, compared by KL.

    Which paths are drawn depends on the seed of the run and on how many steps went before, alone: all processes draw the same, and so
    does a resumed run. The teacher stays as it is: its weights get no gradient and its normalisation runs in eval mode.

    Source: Liu et al., "Function-Consistent Feature Distillation", ICLR 2023, section 3.2, and its repository.
    """

    def __init__(self, options: FCFD, pairs: Sequence[FeaturePair], seed: int) -> None:
        super().__init__()
        self.options, self.seed, self.steps = options, seed, 0
        self.distance = {"l1": l1, "l2": mse}[options.distance]
        reversed_pairs = [pair.reversed for pair in pairs] if options.replays_student else []
        self.to_student = nn.ModuleList(map(Adapter, reversed_pairs))

    def get_extra_state(self) -> int:
        """The number of steps, for checkpoints."""
        return self.steps

    def set_extra_state(self, state: int) -> None:
        """Go on at a number of steps."""
        self.steps = state

    def forward(self, inputs: LossInputs) -> Tensor:
        """The unweighted sum of the three terms."""
        o, dice = self.options, random.Random(f"{self.seed} {self.steps}")
        self.steps += 1
        total = torch.zeros((), device=inputs.lr.device)
        if o.appearance > 0:
            values = [in_full_precision(fitnet, maps.adapted, maps.teacher) for maps in inputs.maps]
            total = total + o.appearance * torch.stack(values).mean()
        for factor, path in ((o.student_to_teacher, self._into_teacher), (o.teacher_to_student, self._into_student)):
            if factor > 0:
                values = [path(inputs, dice.randrange(len(inputs.maps))) for _ in range(o.paths)]
                total = total + factor * torch.stack(values).mean()
        return total

    def _into_teacher(self, inputs: LossInputs, index: int) -> Tensor:
        """From the student's map of a pair through the rest of the teacher."""
        here = inputs.maps[index]
        seen = here.source.forward_from(here.pair.teacher.path, here.adapted)
        later = {
            maps.pair.teacher.path: maps.teacher for maps in inputs.maps if maps.pair.teacher.path in seen.features
        }
        return self._image(seen.sr, here.source.forward_from.sr) + _maps(seen.features, later)

    def _into_student(self, inputs: LossInputs, index: int) -> Tensor:
        """From the teacher's map of a pair through the rest of the student."""
        here = inputs.maps[index]
        value = self.to_student[index](here.teacher, here.student)
        seen = inputs.student.forward_from(here.pair.student.path, value)
        return self._image(seen.sr, inputs.reachable(here.source.forward_from.sr))

    def _image(self, sr: Tensor, own: Tensor) -> Tensor:
        return in_full_precision(self.distance, sr, own)


def _maps(seen: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Tensor | float:
    """Mean of the squared differences of the maps that a path passes to the teacher's."""
    values = [in_full_precision(fitnet, seen[path], target) for path, target in own.items()]
    return torch.stack(values).mean() if values else 0.0
