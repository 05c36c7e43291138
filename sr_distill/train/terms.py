"""The objective resolved: each line of the options as a term that knows what it reads."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ..contracts import Batch, Prediction
from ..data.color import rgb_to_gray, with_luma_of
from ..errors import LossError, UserError
from ..features import Adapter, FeaturePair, Need
from ..losses import Loss, LossInputs, MatchedMaps
from ..models import SRModel
from ..options.losses import BalanceOptions, label_of
from ..precision import FullPrecision
from .schedule import weight_at


@dataclass(frozen=True)
class Link:
    """Two networks whose maps are compared: a student and a teacher or peer, by name, and in which sort of layers."""

    student: str
    source: str
    before_activation: bool = False

    @property
    def key(self) -> str:
        """As a key of nn.ModuleDict, which refuses the names of its own methods."""
        return f"{self.student}_from_{self.source}" + ("_before_activation" if self.before_activation else "")


class FoundWeight(nn.Module):
    """The weight of a term that finds it itself; None until it has. Kept in checkpoints.

    Args:
        plan: how it is found.
    """

    def __init__(self, plan: BalanceOptions) -> None:
        super().__init__()
        self._plan = plan.model_dump()
        self.weight: float | None = None

    def get_extra_state(self) -> dict[str, object]:
        """The weight, for checkpoints."""
        return {"weight": self.weight, "plan": self._plan}

    def set_extra_state(self, state: Mapping[str, object] | float | None) -> None:
        """Go on with a weight (older checkpoints have it alone); with none where it would be found otherwise now."""
        state = state if isinstance(state, Mapping) else {"weight": state, "plan": self._plan}
        self.weight = state["weight"] if state["plan"] == self._plan else None


class Term(FullPrecision):
    """One loss of one student.

    Args:
        loss: the loss with its options.
        student: name of the student.
        sources: names of the teachers or peers that it is compared with; none for a term against HR.
        pairs: for a term on features, the pairs of each link.
        averaged: compare with the weighted mean of the sources' outputs, not with each in turn.
        seed: of the run.

    Attributes:
        needs: what it wants of each network, by name.
    """

    def __init__(
        self,
        loss: Loss,
        student: str,
        sources: Sequence[str],
        pairs: Mapping[Link, Sequence[FeaturePair]],
        averaged: bool,
        seed: int,
    ) -> None:
        super().__init__()
        loss.prepare()
        self.loss, self.student, self.sources, self.averaged = loss, student, tuple(sources), averaged
        self.links = tuple(pairs)
        self.module = loss.build([pair for matched in pairs.values() for pair in matched], seed)
        self.found = None if loss.balance is None else FoundWeight(loss.balance)
        in_color = (loss.reads_output and not loss.of_differences) or loss.replays_student
        self.needs = {student: Need(sr=loss.reads_output, color=in_color, replay=loss.replays_student)}
        for source in sources:
            self.needs[source] = Need(sr=not loss.reads_maps, color=True, replay=loss.replays_teacher)
        for link, matched in pairs.items():
            self.needs[student] |= Need(paths=frozenset(pair.student.path for pair in matched))
            self.needs[link.source] |= Need(paths=frozenset(pair.teacher.path for pair in matched))

    @property
    def label(self) -> str:
        """The name in the log; those of a peer begin with its name."""
        return label_of(self.loss, self.student)

    @property
    def is_unbalanced(self) -> bool:
        """Whether its weight is to be found and was not yet."""
        return self.found is not None and self.found.weight is None

    def weight_at(self, step: int, total_steps: int) -> float:
        """Its weight in optimizer step ``step`` of ``total_steps``."""
        found = 1.0 if self.found is None or self.found.weight is None else self.found.weight
        return found * weight_at(step, self.loss, total_steps)

    def forward(self, step: StepReader) -> Tensor:
        """The unweighted term, a scalar.

        Raises:
            UserError: it cannot be computed from what is there; names the term.
        """
        inputs = LossInputs(
            lr=step.batch.lr,
            # As far as a luma student can reach it, which takes the student's output: it is there where the loss reads it.
            hr=step.hr(self.student) if self.loss.reads_output else step.batch.hr,
            student=step.given[self.student],
            targets=[] if self.loss.reads_maps else self._targets(step),
            maps=[maps for link in self.links for maps in step.maps(link)],
            reachable=functools.partial(step.reachable, self.student),
        )
        try:
            value = self.module(inputs)
        except LossError as error:
            raise UserError(f"loss {self.label}: {error}.") from error
        if value.ndim:
            raise UserError(f"loss {self.label} gave a tensor of shape {tuple(value.shape)}; a loss gives one number.")
        return value

    def _targets(self, step: StepReader) -> list[Tensor]:
        """The images that the output is compared with."""
        if not self.sources:
            return [step.hr(self.student)]
        if self.averaged:
            return [step.mean(self.student, self.sources)]
        return [step.image(self.student, source) for source in self.sources]


class StepReader:
    """What the networks gave in one step, as the terms read it; what several terms read is made once.

    Args:
        batch: the images.
        given: what each network gave, by name: students with gradient, teachers without.
        students: the students by name.
        teacher_weights: of the teachers in the mean of their outputs.
        pairs, adapters: the pairs of each link, and the adapters of those links that need them.
    """

    def __init__(
        self,
        batch: Batch,
        given: Mapping[str, Prediction],
        students: Mapping[str, SRModel],
        teacher_weights: Mapping[str, float],
        pairs: Mapping[Link, Sequence[FeaturePair]],
        adapters: Mapping[str, Sequence[Adapter]],
    ) -> None:
        self.batch, self.given = batch, given
        self._students, self._teacher_weights = students, teacher_weights
        self._pairs, self._adapters = pairs, adapters
        self._targets: dict[tuple[str, str], Tensor] = {}
        self._maps: dict[Link, list[MatchedMaps]] = {}

    def hr(self, student: str) -> Tensor:
        """The ground truth as far as this student can reach it."""
        return self._target(student, "hr", self.batch.hr)

    def image(self, student: str, source: str) -> Tensor:
        """The output of a teacher or peer as a target of this student."""
        return self._target(student, source, self._fixed(source).sr)

    def mean(self, student: str, sources: Sequence[str]) -> Tensor:
        """The weighted mean of the outputs of several teachers."""
        whole = sum(self._teacher_weights[source] for source in sources)
        return sum(self.image(student, source) * (self._teacher_weights[source] / whole) for source in sources)

    def maps(self, link: Link) -> list[MatchedMaps]:
        """The matched maps of two networks."""
        if link not in self._maps:
            student, source, pairs = self.given[link.student], self._fixed(link.source), self._pairs[link]
            adapters = self._adapters[link.key] if link.key in self._adapters else [None] * len(pairs)
            self._maps[link] = [
                MatchedMaps(p, student.features[p.student.path], source.features[p.teacher.path], adapter, source)
                for p, adapter in zip(pairs, adapters)
            ]
        return self._maps[link]

    def reachable(self, student: str, image: Tensor) -> Tensor:
        """For a luma student: the image in gray if the student's output is, else its luma on the student's (bicubic) chroma.

        Chroma is not the student's to change.
        """
        if self._students[student].spec.color == "rgb":
            return image
        sr = self.given[student].sr.detach()
        return rgb_to_gray(image) if sr.shape[1] == 1 else with_luma_of(sr, image)

    def _target(self, student: str, name: str, image: Tensor) -> Tensor:
        if (student, name) not in self._targets:
            self._targets[student, name] = self.reachable(student, image)
        return self._targets[student, name]

    def _fixed(self, source: str) -> Prediction:
        """What a teacher gave; what a peer gave, as a teacher gives it: without gradient, clipped to [0, 1]."""
        given = self.given[source]
        if source not in self._students:
            return given
        features = {path: value.detach() for path, value in given.features.items()}
        return Prediction(None if given.sr is None else given.sr.detach().clamp(0, 1), features)
