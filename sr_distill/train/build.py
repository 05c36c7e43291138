"""From the options of a run to its task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..features import FeaturePair, TappedTeacher, choose_pairs
from ..models import SRModel, Teacher
from ..options import LossOptions, RunOptions
from .task import DistillationTask, MutualTask


def build_task(
    options: RunOptions, students: Mapping[str, SRModel], teachers: Mapping[str, SRModel]
) -> DistillationTask | MutualTask:
    """The objective of a run over its students, with the layers that are compared.

    Args:
        options: the options of the run.
        students: as ``options.all_students`` names them.
        teachers: as ``options.all_teachers`` names them.

    Raises:
        UserError: a layer does not exist, or a network has no chain of blocks to choose from, or a pair does not fit its adapter.
    """
    networks = {**students, **teachers}

    def objective(name: str) -> DistillationTask:
        peers = [other for other in students if other != name]
        sources: dict[str, None] = {}
        for term in options.losses:
            if term.on == "features":
                looked_at = peers if term.source == "peers" else [term.teacher] if term.teacher else teachers
                sources |= dict.fromkeys(looked_at)
        pairs = {
            source: choose_pairs(students[name], networks[source], options.features_of(source)) for source in sources
        }
        return DistillationTask(students[name], options.losses, pairs, options.shares, peers)

    tasks = {name: objective(name) for name in students}
    return MutualTask(tasks) if options.peers else tasks["student"]


def tap_teacher(
    teacher: Teacher, name: str, pairs: Sequence[FeaturePair], losses: Sequence[LossOptions]
) -> TappedTeacher:
    """The teacher of this name as the terms need it: its layers of the pairs, its output, the rest of it from each layer on."""
    terms = [term for term in losses if term.looks_at(name)]
    need_sr, replay = any(term.on == "sr" for term in terms), any(term.replays_teacher for term in terms)
    return TappedTeacher(teacher, [pair.teacher.path for pair in pairs], need_sr, replay)
