"""Function-consistent feature distillation: what the later layers of both networks make of the maps."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..features import Bridge, FeaturePair, Units
from ..precision import in_full_precision
from ..registry import LOSSES
from .activation import fitnet
from .base import FeatureLoss, LossInputs, MatchedMaps
from .pixel import l1, mse


@LOSSES.register
class FCFD(FeatureLoss):
    """Function-consistent feature distillation (Liu et al. 2023): how later layers of both networks read the maps."""

    adapted: ClassVar[bool] = False  # it has bridges of its own
    type: Literal["fcfd"] = Field(description="Name of the loss.")
    against: Literal["teacher"] = Field("teacher", description="The teacher's.")
    appearance: float = Field(
        5.0, ge=0, description="Factor of the squared difference of bridged maps and the teacher's."
    )
    path_maps: float = Field(
        5.0,
        ge=0,
        description="Factor of the same for the maps that a path from student to teacher passes in the teacher.",
    )
    path_outputs: float = Field(1.0, ge=0, description="Factor of the difference of the images at the ends of paths.")
    direction: Literal["both", "student_to_teacher", "teacher_to_student"] = Field(
        "both", description="In which network paths begin, and into which they cross."
    )
    paths: int = Field(2, ge=1, le=16, description="Different paths that are drawn in a step; of fewer, all.")
    distance: Literal["l1", "l2"] = Field("l1", description="Between the image of a path and the teacher's own.")

    @model_validator(mode="after")
    def _something(self) -> FCFD:
        if self.appearance == self.path_maps == self.path_outputs == 0:
            raise ValueError("every part of fcfd has factor 0: nothing would be learned")
        if self.path_maps == self.path_outputs == 0 and (self.direction, self.paths) != ("both", 2):
            raise ValueError("direction and paths have no effect where path_maps and path_outputs are 0")
        if self.path_outputs == 0 and (self.distance != "l1" or self.direction == "teacher_to_student"):
            raise ValueError("distance, and paths from teacher to student, have no effect where path_outputs is 0")
        return self

    @property
    def compares_values(self) -> bool:
        """Yes, through its bridges."""
        return True

    @property
    def replays_teacher(self) -> bool:
        """Paths that begin in the student end in the teacher, and every image is compared with the teacher's own."""
        return self.path_maps > 0 or self.path_outputs > 0

    @property
    def replays_student(self) -> bool:
        """Paths that begin in the teacher end in the student."""
        return self.path_outputs > 0 and self.direction != "student_to_teacher"

    def build(self, pairs: Sequence[FeaturePair], seed: int) -> nn.Module:
        """See :class:`MixedPaths`."""
        return MixedPaths(self, pairs, seed)


class MixedPaths(nn.Module):
    """``a sum_k |B_k s_k - t_k|^2 + m sum_paths sum_later |p_k - t_k|^2 + o sum_paths d(image of the path, the teacher's)``.

    The first term (appearance) compares the maps s_k, t_k of each pair; ``|x|^2`` is the mean of the squares, and B_k a bridge
    (:class:`~sr_distill.features.Bridge`). A path begins in one network and crosses once, at one pair, into the other, through a bridge
    (in the direction of the student, another one). That network goes on with what it gets: the image it makes of it is compared with
    the teacher's own (L1 or squared) and, in the teacher, so is the map p_k at each later pair. In the paper the image is a class
    distribution, compared by KL. At the last pair, behind which the network only makes an image, no path crosses unless it is the only one.

    Which paths are drawn depends on the seed of the run and on how many steps went before, alone: all processes draw the same, and so
    does a resumed run. The teacher stays as it is: its weights get no gradient and its normalisation runs in eval mode.

    Source: Liu et al., "Function-Consistent Feature Distillation", ICLR 2023, section 3.2, and its repository: factors, bridges and the
    number of paths are those of its CIFAR experiments.
    """

    def __init__(self, options: FCFD, pairs: Sequence[FeaturePair], seed: int) -> None:
        super().__init__()
        self.options, self.seed, self.steps = options, seed, 0
        self.distance = {"l1": l1, "l2": mse}[options.distance]
        crossings = range(max(1, len(pairs) - 1))
        self.paths: list[tuple[bool, int]] = []  # whether it begins in the student, and where it crosses
        if options.replays_teacher and options.direction != "teacher_to_student":
            self.paths += [(True, index) for index in crossings]
        if options.replays_student:
            self.paths += [(False, index) for index in crossings]
        bridged = range(len(pairs)) if options.appearance else [index for begins, index in self.paths if begins]
        self.to_teacher = nn.ModuleDict({str(index): Bridge(pairs[index]) for index in bridged})
        back = [index for begins, index in self.paths if not begins]
        self.to_student = nn.ModuleDict({str(index): Bridge(pairs[index].reversed) for index in back})
        self.units = nn.ModuleList(map(Units, pairs))

    def get_extra_state(self) -> int:
        """The number of steps, for checkpoints."""
        return self.steps

    def set_extra_state(self, state: int) -> None:
        """Go on at a number of steps."""
        self.steps = state

    def forward(self, inputs: LossInputs) -> Tensor:
        """The unweighted sum of the three terms."""
        dice = random.Random(f"{self.seed} {self.steps}")
        self.steps += 1
        bridged = {
            int(index): in_full_precision(bridge, inputs.maps[int(index)].student, inputs.maps[int(index)].teacher)
            for index, bridge in self.to_teacher.items()
        }
        values = []
        if self.options.appearance > 0:
            own = [self._of_maps(index, inputs.maps[index], value) for index, value in bridged.items()]
            values.append(self.options.appearance * torch.stack(own).sum())
        for begins_in_student, index in dice.sample(self.paths, min(self.options.paths, len(self.paths))):
            if begins_in_student:
                values += self._into_teacher(inputs, index, bridged[index])
            else:
                values.append(self._into_student(inputs, index))
        return torch.stack(values).sum()

    def _into_teacher(self, inputs: LossInputs, index: int, bridged: Tensor) -> list[Tensor]:
        """From the student's map of a pair through the rest of the teacher: factors applied."""
        here, o, values = inputs.maps[index], self.options, []
        value = in_full_precision(self.units[index].restored, bridged, here.teacher)
        seen = here.source.forward_from(here.pair.teacher.path, value)
        if o.path_outputs > 0:
            values.append(o.path_outputs * in_full_precision(self.distance, seen.sr, here.source.forward_from.sr))
        for later, maps in enumerate(inputs.maps if o.path_maps > 0 else ()):
            passed = seen.features.get(maps.pair.teacher.path)
            if passed is not None:
                ours = in_full_precision(self.units[later].of, passed, maps.teacher)
                values.append(o.path_maps * self._of_maps(later, maps, ours))
        return values

    def _into_student(self, inputs: LossInputs, index: int) -> Tensor:
        """From the teacher's map of a pair through the rest of the student: factor applied."""
        here = inputs.maps[index]
        value = in_full_precision(self.to_student[str(index)], here.teacher, here.student)
        seen = inputs.student.forward_from(here.pair.student.path, value)
        own = inputs.reachable(here.source.forward_from.sr)
        return self.options.path_outputs * in_full_precision(self.distance, seen.sr, own)

    def _of_maps(self, index: int, maps: MatchedMaps, ours: Tensor) -> Tensor:
        """Mean squared difference to the teacher's map of a pair, of a map in the units of the pair."""
        return in_full_precision(lambda x, t: fitnet(x, self.units[index].of(t, t)), ours, maps.teacher)
