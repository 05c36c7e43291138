"""Function-consistent feature distillation: what the later layers of both networks make of the maps."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..contracts import Prediction
from ..features import Adapter, FeaturePair
from ..options import losses as options
from .activation import fitnet
from .distribution import logits
from .pixel import l1
from .scene import MatchedMaps, Scene, SceneLoss


class FCFDLoss(SceneLoss):
    """``a mean_k |A_k s_k - t_k|^2 + b F(student to teacher) + c F(teacher to student)``.

    The first term (appearance) compares the maps s_k, t_k of each pair as FitNet does; A_k is the adapter. F is the mean over random
    mixed paths. A path begins with the map of one network at a random pair, crosses into the other network there, and at each later
    pair either crosses again or goes on; wherever it crosses, an adapter (of its own in the direction of the student) changes the
    channels. Of a path, its image is compared with the teacher's own (L1 or squared), and every map that it passes at a later pair with
    the teacher's (mean of the squared differences). In the paper the image is a class distribution, compared by KL.

    Which paths are drawn depends on how many steps went before, alone: all processes draw the same, and so does a resumed run. The
    teacher stays as it is: its weights get no gradient and its normalisation runs in eval mode.

    Source: Liu et al., "Function-Consistent Feature Distillation", ICLR 2023, section 3.2, and its repository.
    """

    def __init__(self, options: options.FCFD) -> None:
        super().__init__()
        self.options = options
        self.distance = {"l1": l1, "l2": logits}[options.distance]
        self.to_student = nn.ModuleList()
        self.steps = 0

    def match(self, pairs: Sequence[FeaturePair]) -> None:
        """Make the adapters from the teacher to the student."""
        self.to_student.extend(Adapter(pair.reversed) for pair in pairs)

    def get_extra_state(self) -> int:
        """The number of steps, for checkpoints."""
        return self.steps

    def set_extra_state(self, state: int) -> None:
        """Go on at a number of steps."""
        self.steps = state

    def forward(self, scene: Scene) -> Tensor:
        """The unweighted sum of the three terms."""
        o = self.options
        dice = random.Random(self.steps)
        self.steps += 1
        total = o.appearance * torch.stack([fitnet(maps.adapted, maps.teacher) for maps in scene.maps]).mean()
        for factor, in_student in ((o.student_to_teacher, True), (o.teacher_to_student, False)):
            if factor > 0:
                functions = [self._function(scene, in_student, dice) for _ in range(o.paths)]
                total = total + factor * torch.stack(functions).mean()
        return total

    def _function(self, scene: Scene, in_student: bool, dice: random.Random) -> Tensor:
        """How far a random path that begins in the student, or in the teacher, is from the teacher's own."""
        order = list(scene.maps[0].network.features)
        ranked = sorted(range(len(scene.maps)), key=lambda k: order.index(scene.maps[k].pair.teacher.path))
        first = dice.randrange(len(ranked))
        crossings = [k for k in ranked[first + 1 :] if dice.random() < 0.5]
        here = ranked[first]
        start = scene.maps[here]
        value = start.student if in_student else start.teacher
        passed: list[Tensor] = []
        for there in [*crossings, None]:
            value = self._across(scene.maps[here], here, value, in_student)
            in_student = not in_student
            network, path = self._side(scene, scene.maps[here], in_student)
            until = None if there is None else self._side(scene, scene.maps[there], in_student)[1]
            seen = network.rest(path, value, until)
            later = [maps for maps in scene.maps if self._side(scene, maps, in_student)[1] in seen.features]
            passed += [self._from_teacher(maps, seen.features, in_student) for maps in later]
            if there is not None:
                value, here = seen.features[until], there
        own = start.network.rest.sr
        total = self.distance(seen.sr, own)
        return total + torch.stack(passed).mean() if passed else total

    def _across(self, maps: MatchedMaps, index: int, value: Tensor, from_student: bool) -> Tensor:
        if from_student:
            return maps.adapter(value, maps.teacher)
        return self.to_student[index](value, maps.student)

    @staticmethod
    def _side(scene: Scene, maps: MatchedMaps, in_student: bool) -> tuple[Prediction, str]:
        """The network on this side, and the layer of the pair in it."""
        return (scene.student, maps.pair.student.path) if in_student else (maps.network, maps.pair.teacher.path)

    @staticmethod
    def _from_teacher(maps: MatchedMaps, features: Mapping[str, Tensor], in_student: bool) -> Tensor:
        """How far the map that a path has at a pair is from the teacher's."""
        if in_student:
            return fitnet(maps.adapter(features[maps.pair.student.path], maps.teacher), maps.teacher)
        return fitnet(features[maps.pair.teacher.path], maps.teacher)
