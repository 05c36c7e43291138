"""What the options of every term of the objective have in common; the class of each loss lies beside its code, in ``losses/``."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ..errors import UserError, did_you_mean
from ..registry import LOSSES, OneOf
from .base import Options
from .sections import FeatureOptions


class WeightSchedule(Options):
    """The weight of a term over the run: ``weight x rise x fall`` between ``start`` and ``stop``, 0 outside."""

    start: int = Field(0, ge=0, description="First step with the term.")
    stop: int | None = Field(None, ge=1, description="First step without the term; None: it stays to the end.")
    warmup: int = Field(0, ge=0, description="Steps of linear rise from 0 after start.")
    decay: Literal["linear", "cosine"] = Field("linear", description="Shape of the way to decay_to.")
    decay_to: float = Field(
        1.0, ge=0, description="Factor on the weight that is reached at stop, or at the end of the run."
    )

    @model_validator(mode="after")
    def _something_happens(self) -> WeightSchedule:
        if self.stop is not None and self.stop <= self.start:
            raise ValueError(f"stop ({self.stop}) must be after start ({self.start})")
        if self.start == 0 and self.stop is None and self.warmup <= 1 and self.decay_to == 1:
            raise ValueError("this schedule changes nothing: leave it out")
        if self.decay != "linear" and self.decay_to == 1:
            raise ValueError(f"decay: {self.decay} has no effect without decay_to")
        return self


class BalanceOptions(Options):
    """A weight that is found, not given: such that the term's gradient has ``ratio`` times the norm of that of other terms.

    Until step ``after`` the term does not count; then its weight is found, once, from the gradients on the student's weights in that and
    the following batches, and stays.
    """

    against: str = Field("l1", description="The terms it is measured by: a type, or the name of one in the log.")
    ratio: float = Field(0.3, gt=0, description="Norm of its gradient in units of the norm of theirs.")
    after: int = Field(
        100,
        ge=0,
        description="Steps before it is found, counted from the term's start: gradients of a network that has not learned anything say "
        "little. 0 for one that begins trained (init_from).",
    )


class TermOptions(Options):
    """A term of the objective: what is compared (``on``), with what (``against``), and how much it weighs."""

    type: str = Field(description="Name of the loss.")
    on: Literal["sr", "features", "decoded", "projected"] = Field("sr", description="What is compared.")
    against: Literal["hr", "teacher", "peers"] | None = Field(
        None,
        description="With what: the ground truth (hr), the teacher (of several the weighted mean of their outputs), or the peers "
        "of mutual learning (mean over them). None: hr for the output, teacher for features.",
    )
    teacher: str | None = Field(
        None, description="Name of one of several teachers; None: all of them, or the only one."
    )
    student: str | None = Field(
        None,
        description="Name of the one student that has this term (student, peer_1, peer_2, ...); None: every student.",
    )
    weight: float = Field(1.0, ge=0, description="Factor of the term in the sum; applied once, in the task.")
    balance: BalanceOptions | None = Field(
        None, description="Find the weight, in the run, by the size of gradients; None: it is as given."
    )
    schedule: WeightSchedule | None = Field(None, description="The weight over the run; None: constant.")
    name: str | None = Field(None, min_length=1, description="Name in the log; None: type_on_against, as in l1_sr_hr.")

    @property
    def label(self) -> str:
        """The name under which the term is logged."""
        target = "" if self.reads_maps and self.source == "teacher" else f"_{self.source}"
        which = f"_{self.teacher}" if self.teacher else ""
        return self.name or f"{self.type}_{self.on}{target}{which}"

    @property
    def source(self) -> Literal["hr", "teacher", "peers"]:
        """What is compared with."""
        return self.against or ("teacher" if self.reads_maps else "hr")

    @property
    def uses_adapter(self) -> bool:
        """Whether the student's maps are brought to the teacher's shape first."""
        return self.reads_maps

    @property
    def compares_values(self) -> bool:
        """Whether it compares values of maps, so that it depends on how large they are."""
        return self.uses_adapter

    @property
    def reads_maps(self) -> bool:
        """Whether it looks at feature maps."""
        return self.on != "sr"

    @property
    def least_batch(self) -> int:
        """The smallest batch that it can be computed from."""
        return 1

    @property
    def least_side(self) -> int:
        """The smallest side of an image that it can be computed from."""
        return 1

    def looks_at(self, teacher: str) -> bool:
        """Whether it looks at the teacher of this name."""
        return self.source == "teacher" and self.teacher in (None, teacher)

    @property
    def counts_from(self) -> int:
        """The first step in which it counts."""
        start = 0 if self.schedule is None else self.schedule.start
        return start if self.balance is None else start + self.balance.after

    def balanced_by(self, terms: Sequence[TermOptions]) -> list[int]:
        """The positions of the terms among ``terms`` whose gradient its weight is found by."""
        if self.balance is None:
            return []
        names = [
            position
            for position, term in enumerate(terms)
            if term.balance is None and term.weight > 0 and self.balance.against in (term.type, term.label)
        ]
        return [p for p in names if self.student is None or terms[p].student in (None, self.student)]

    @model_validator(mode="after")
    def _found_or_given(self) -> TermOptions:
        if self.balance is not None and self.weight != 1:
            raise ValueError(f"balance finds the weight: leave out weight ({self.weight:g}), or balance")
        if self.balance is not None and self.schedule is not None:
            if self.schedule.stop is not None and self.schedule.stop <= self.counts_from:
                raise ValueError(
                    f"the weight is found at step {self.counts_from} (schedule.start + balance.after), and schedule.stop is {self.schedule.stop}"
                )
        return self

    @model_validator(mode="after")
    def _maps_of_a_network(self) -> TermOptions:
        if self.reads_maps and self.against == "hr":
            raise ValueError("feature maps are compared with the teacher's: leave out against, or say teacher")
        if self.on in ("decoded", "projected") and self.source == "peers":
            raise ValueError(f"on: {self.on} needs a teacher that does not change, which peers are not")
        return self


LOG_COLUMNS = ("step", "kind", "total", "learning_rate", "images_per_second")
"""What the log holds besides the terms."""

LossOptions = Annotated[TermOptions, OneOf(LOSSES)]
"""The options of a term, whose loss is chosen by ``type``."""


def teachers_used(terms: Sequence[TermOptions], names: Sequence[str]) -> set[str]:
    """Which of the teachers of these names the terms look at.

    Raises:
        ValueError: a term looks at a teacher that is not there, or does not say at which of several.
    """
    used: set[str] = set()
    for term in terms:
        if term.source != "teacher":
            if term.teacher is not None:
                raise ValueError(
                    f"loss {term.label} names a teacher, but does not compare with it: add against: teacher"
                )
            continue
        if not names:
            raise ValueError("a loss compares with the teacher, but there is no teacher: add teacher.model")
        if term.teacher is not None and term.teacher not in names:
            raise ValueError(
                f"loss {term.label}: there is no teacher '{term.teacher}'.{did_you_mean(term.teacher, names)} "
                f"Teachers: {', '.join(names)}"
            )
        if term.reads_maps and term.teacher is None and len(names) > 1:
            raise ValueError(
                f"loss {term.label}: say whose features, as in teacher: {names[0]} (teachers: {', '.join(names)})"
            )
        used |= {name for name in names if term.looks_at(name)}
    return used


def idle_in(features: FeatureOptions, terms: Sequence[TermOptions]) -> Iterator[str]:
    """Options that change nothing in what these terms on maps compare."""
    if features.adapter != "conv1x1" and not any(term.uses_adapter for term in terms):
        yield "adapter"
    if features.normalise != "none" and not any(term.compares_values for term in terms):
        yield "normalise"


def check_shares(teacher_weights: Mapping[str, float] | None, teachers: Sequence[str]) -> None:
    """The mean of several teachers' outputs has a share of each; None: the same.

    Raises:
        UserError: a teacher has none, or one that is not above 0.
    """
    if teacher_weights is not None and set(teacher_weights) != set(teachers):
        raise UserError(
            f"teacher_weights names {sorted(teacher_weights)}, but the teachers are {sorted(teachers)}: give one weight for each."
        )
    for name, weight in (teacher_weights or {}).items():
        if not 0 < weight < math.inf:
            raise UserError(f"teacher_weights: that of {name} is {weight}, and each is a number above 0.")


def check_names(terms: Sequence[TermOptions], students: Sequence[str]) -> None:
    """Every term of every student must have a name of its own in the log.

    Raises:
        ValueError: two terms of a student have one name, or a term has that of something else in the log.
    """
    names = Counter(label_of(term, student) for student in students for term in _of(student, terms))
    repeated = [name for name, count in names.items() if count > 1]
    if repeated:
        raise ValueError(f"several losses are called {', '.join(sorted(repeated))}: give each a 'name' of its own")
    taken = [term.label for term in terms if term.label in LOG_COLUMNS]
    if taken:
        raise ValueError(
            f"a loss cannot be called {taken[0]}, which is something else in the log: give it another 'name'"
        )


def label_of(term: TermOptions, student: str) -> str:
    """The name of a student's term in the log."""
    return term.label if student == "student" else f"{student}_{term.label}"


def _of(student: str, terms: Sequence[TermOptions]) -> list[TermOptions]:
    return [term for term in terms if term.student in (None, student)]


def check_balances(terms: Sequence[TermOptions], students: Sequence[str]) -> None:
    """A weight that is found must have terms of the same student to be found by.

    Raises:
        ValueError: there are none.
    """
    for student in students:
        own = _of(student, terms)
        others = [other for other in own if other.balance is None and other.weight > 0]
        names = dict.fromkeys(name for other in others for name in (other.type, other.label))
        for term in own:
            if term.balance is not None and not term.balanced_by(own):
                hint = did_you_mean(term.balance.against, list(names))
                raise ValueError(
                    f"loss {term.label}: balance.against is '{term.balance.against}', and no term with a weight of its own that {student} has "
                    f"is of this type or has this name.{hint} There are: {', '.join(names) or 'none'}"
                )


def check_weights(terms: Sequence[TermOptions], students: Sequence[str], total_steps: int) -> None:
    """Every student must learn something in every step.

    Raises:
        ValueError: a term names a student that is not there, or a student has steps in which no term has a weight.
    """
    for term in terms:
        if term.student is not None and term.student not in students:
            raise ValueError(
                f"loss {term.label}: there is no student '{term.student}'. Students: {', '.join(students)}"
            )
    if all(term.weight == 0 for term in terms):
        raise ValueError("every loss has weight 0: nothing would be learned")
    for student in students:
        spans = [_span(term, total_steps) for term in terms if term.student in (None, student) and term.weight > 0]
        # Whether a step has a term changes only where one starts or stops.
        for step in sorted({0, *(edge for span in spans for edge in span if edge < total_steps)}):
            if not any(start <= step < stop for start, stop in spans):
                raise ValueError(
                    f"no loss has a weight in step {step} for {student}: see schedule.start and schedule.stop"
                )


def _span(term: TermOptions, total_steps: int) -> tuple[int, int]:
    stop = None if term.schedule is None else term.schedule.stop
    return term.counts_from, total_steps if stop is None else stop
