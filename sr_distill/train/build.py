"""From the options of a run to its networks and its task: the one place where they are wired."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..console import progress_bar
from ..data import PairStore, embedded, open_pairs
from ..data.middles import shrunk_middle
from ..errors import UserError
from ..features import FeaturePair, TappedTeacher, choose_pairs
from ..infer import WholeOutputs
from ..losses import Loss
from ..models import SRModel, Teacher, build_model, calibrate, for_int8
from ..models.quantised import check_has_convolutions, with_rounding
from ..options import LossOptions, RunOptions
from ..options.sections import FeatureOptions, QuantizationOptions
from ..zoo import open_model
from .task import DistillationTask
from .terms import Link, Term


@dataclass(frozen=True)
class Run:
    """A run as its options describe it, on the CPU, before its first step.

    Attributes:
        options: of the run.
        students: the networks that are trained, by name, with their starting weights.
        teachers: the frozen networks that are imitated, by name.
        task: the students and the objective.
        not_taken: weights that ``init_from`` has in another shape, so that they start anew.
    """

    options: RunOptions
    students: dict[str, SRModel]
    teachers: dict[str, TappedTeacher]
    task: DistillationTask
    not_taken: Sequence[str] = ()

    def open_store(self, device: torch.device, say: Callable[[str], None], quiet: bool = False) -> PairStore:
        """The training pairs and the teachers' outputs that can be stored, each made now where it is not there yet.

        Args:
            device: where teachers run.
            say: told what the user should know.
            quiet: without progress bars.

        Raises:
            UserError: photos cannot be used, or a file cannot be written.
        """
        data = self.options.data
        decoding = functools.partial(progress_bar, desc="decoding photos", unit="photo", disable=quiet)
        cache = Path(data.cache_dir)
        store = open_pairs(data.train, self.options.scale, data.lr_size, cache, data.on_unreadable, decoding)
        for reason in store.skipped:
            say(f"skipped: {reason}")
        for name, tapped in self.teachers.items():
            output_is_compared = any(not t.loss.reads_maps and name in t.sources for t in self.task.terms)
            if not self.options.all_teachers[name].cache or not output_is_compared:
                continue
            teacher, outputs = tapped.teacher, WholeOutputs(tapped.teacher, device)
            bar = functools.partial(progress_bar, desc=f"outputs of {name}", unit="image", disable=quiet)
            tiled = store.add_teacher(name, teacher.key, outputs.whole, bar, outputs.in_tiles)
            if tiled:
                say(
                    f"memory on {device} does not suffice for {tiled} of {len(store.names)} images in one piece: "
                    f"the outputs of {name} ({teacher.spec.name}) were made {outputs.in_tiles()[0]} pixels for them."
                )
        return store


def build_run(options: RunOptions) -> Run:
    """Build the networks, and the task over them. Random weights come from torch's random state, as the caller seeded it.

    Raises:
        UserError: a model cannot be loaded, or a layer or weights of a feature network that a term needs are not there.
    """
    students = {name: build_model(network, options.scale) for name, network in options.all_students.items()}
    not_taken = _start_from(options, students["student"])
    if options.quantization is not None:
        students["student"] = _rounding(options.quantization, students["student"])
    teachers = {
        name: Teacher(open_model(teacher.model, options.scale, teacher.architecture), teacher.self_ensemble)
        for name, teacher in options.all_teachers.items()
    }
    losses = [loss for loss in options.losses if loss.weight > 0]  # the others would never be computed
    task = build_task(students, teachers, losses, options.features_of, options.teacher_weights, options.seed)
    return Run(options, students, tap_teachers(task, teachers), task, not_taken)


def build_task(
    students: Mapping[str, SRModel],
    teachers: Mapping[str, Teacher],
    losses: Sequence[LossOptions],
    features_of: Callable[[str], FeatureOptions] = lambda name: FeatureOptions(),
    teacher_weights: Mapping[str, float] | None = None,
    seed: int = 0,
) -> DistillationTask:
    """The objective over networks, with the layers that are compared.

    Args:
        students: the networks to train, by name.
        teachers: the frozen networks, by name.
        losses: the terms; each student has all of them, but those that name another student.
        features_of: which feature maps are compared with those of a teacher or peer of this name.
        teacher_weights: of the teachers in the mean of their outputs; None: all the same.
        seed: of terms that draw something.

    Raises:
        UserError: a layer does not exist, or a network has no chain of blocks to choose from, or a pair does not fit its adapter,
            or a term needs pretrained weights that cannot be had.
    """
    for name in teachers:
        if name in students or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise UserError(
                f"a teacher cannot be called '{name}': a name is made of letters, digits, '_' and '-', and {', '.join(students)} are students."
            )
    networks = {**students, **{name: teacher.model for name, teacher in teachers.items()}}
    pairs: dict[Link, list[FeaturePair]] = {}
    terms = []
    for student in students:
        for loss in losses:
            if loss.student not in (None, student):
                continue
            sources = _sources(loss, student, list(students), list(teachers))
            links = [Link(student, source, loss.before_activation) for source in sources if loss.reads_maps]
            for link in links:
                if link not in pairs:
                    pairs[link] = choose_pairs(
                        networks[student], networks[link.source], features_of(link.source), link.before_activation
                    )
            averaged = loss.source == "teacher" and not loss.reads_maps and len(sources) > 1
            terms.append(Term(loss, student, sources, {link: pairs[link] for link in links}, averaged, seed))
    return DistillationTask(students, terms, pairs, teacher_weights or dict.fromkeys(teachers, 1.0))


def tap_teachers(task: DistillationTask, teachers: Mapping[str, Teacher]) -> dict[str, TappedTeacher]:
    """The teachers as the steps of a task run them; one that no term looks at is left out."""
    most = task.needs([1.0] * len(task.terms))
    return {name: TappedTeacher(teacher, most[name]) for name, teacher in teachers.items() if name in most}


def _sources(loss: Loss, student: str, students: list[str], teachers: list[str]) -> list[str]:
    """Names of the teachers or peers that a term of a student is compared with."""
    if loss.source == "hr":
        return []
    if loss.source == "peers":
        return [name for name in students if name != student]
    return [loss.teacher] if loss.teacher else teachers


def _rounding(quantization: QuantizationOptions, student: SRModel) -> SRModel:
    """The student with the rounding, which begins as exports do: prepared for it, and with the ranges that it has on photographs."""
    try:
        check_has_convolutions(student)
    except ValueError as error:
        raise UserError(f"quantization: {error}; it is for networks such as mobile_sr.") from None
    photos = [shrunk_middle(path, student.spec.scale)[None].float().div(255) for path in embedded.training_photos()]
    rounding = with_rounding(for_int8(student, photos), quantization.momentum)
    calibrate(rounding, photos)
    return rounding.train(student.training)


def _start_from(options: RunOptions, student: SRModel) -> list[str]:
    if options.init_from is None:
        return []
    try:
        return student.start_from(open_model(options.init_from))
    except ValueError as error:
        raise UserError(f"init_from: {options.init_from} is another network than student: {error}.") from None
