"""Everything trainable in one module, and the objective as a dictionary of named terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..contracts import Batch, Prediction
from ..data.color import with_luma_of
from ..errors import UserError
from ..features import Adapter, FeaturePair, ReplayTaps, Taps
from ..losses import MatchedMaps, Scene, build_term, each_image_looked_at_once
from ..models import SRModel
from ..options import LossOptions


class DistillationTask(nn.Module):
    """The student, the adapters of its feature maps, and the objective.

    The teachers stay outside: they are not trained, saved or distributed. ``forward`` returns the sum
    ``sum_i weight_i term_i`` and the unweighted terms by name. Distributed training and compilation wrap this module, so that
    whatever is trainable is inside.

    Args:
        student: the model to train.
        losses: the terms of the objective.
        pairs: for each teacher, by name, the layers that terms on features compare; a term is the mean over the pairs.
        shares: the teachers by name, and the weight of each in the mean of their outputs; None: one, called "teacher".
        peers: names of students that learn along, of mutual learning.

    Raises:
        UserError: a term needs pretrained weights that cannot be had, or a pair does not fit the adapter.
    """

    def __init__(
        self,
        student: SRModel,
        losses: Sequence[LossOptions],
        pairs: Mapping[str, Sequence[FeaturePair]] | None = None,
        shares: Mapping[str, float] | None = None,
        peers: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.student = student
        self.losses = list(losses)
        self.pairs = {name: list(matched) for name, matched in (pairs or {}).items()}
        self.shares = {"teacher": 1.0} if shares is None else dict(shares)
        self.peers = list(peers)
        self.terms = nn.ModuleList(build_term(options) for options in losses)
        self._mean_is_needed = any(self._is_of_the_mean(options) for options in self.losses)
        self.adapters = nn.ModuleDict()
        for options, term in zip(self.losses, self.terms):
            names = self._compared_with(options) if options.on == "features" else []
            term.match([pair for name in names for pair in self.pairs[name]])
            for name in names if term.adapted else []:
                if _key(name) not in self.adapters:
                    self.adapters[_key(name)] = nn.ModuleList(Adapter(pair) for pair in self.pairs[name])
        self._vgg_layers = frozenset().union(*(getattr(m, "vgg_layers", ()) for m in self.terms.modules()))
        self.tap([pair.student.path for matched in self.pairs.values() for pair in matched])

    @property
    def matches(self) -> list[tuple[str, str, FeaturePair]]:
        """All pairs with the names of their student and their teacher."""
        return [("student", name, pair) for name, pairs in self.pairs.items() for pair in pairs]

    def tap(self, paths: Sequence[str]) -> None:
        """Read these layers of the student in each step."""
        replay = any(options.replays_student for options in self.losses)
        self._taps = (ReplayTaps if replay else Taps)(self.student, paths) if paths else None

    @property
    def students(self) -> dict[str, SRModel]:
        """The model that is trained, by name."""
        return {"student": self.student}

    @property
    def labels(self) -> list[str]:
        """Names of the terms, in their order."""
        return [options.label for options in self.losses]

    @property
    def helpers(self) -> nn.Module:
        """What is trained or kept beside the student: the adapters, and what terms remember."""
        return nn.ModuleDict({"adapters": self.adapters, "terms": self.terms})

    def predict(self, lr: Tensor) -> Prediction:
        """The student's output and the maps of its tapped layers."""
        return Prediction(self.student(lr)) if self._taps is None else self._taps.run(lr)

    def forward(
        self,
        batch: Batch,
        teachers: Mapping[str, Prediction] | None = None,
        weights: Sequence[float] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Total and terms for one batch.

        Args:
            teachers: by name, what terms that look at teachers are compared with.
            weights: of the terms in this step; None: those of the options.
        """
        return self.objective(batch, self.predict(batch.lr), teachers or {}, weights)

    def objective(
        self,
        batch: Batch,
        student: Prediction,
        teachers: Mapping[str, Prediction],
        weights: Sequence[float] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Total and terms for what the student gave; arguments as in :meth:`forward`."""
        hr = self._reachable(batch.hr, student.sr)
        images = {
            name: self._reachable(given.sr, student.sr) for name, given in teachers.items() if given.sr is not None
        }
        maps = {name: self._match(name, student, teachers[name]) for name in self.pairs if name in teachers}
        together = self._mean(images) if self._mean_is_needed else None
        total, values = student.sr.new_zeros(()), {}
        weights = [options.weight for options in self.losses] if weights is None else weights
        with each_image_looked_at_once(self._vgg_layers):
            for options, term, weight in zip(self.losses, self.terms, weights):
                names = self._compared_with(options)
                if options.on == "features":
                    targets, matched = (), [m for name in names for m in maps[name]]
                elif options.source == "hr":
                    targets, matched = (hr,), ()
                elif self._is_of_the_mean(options):
                    targets, matched = (together,), ()
                else:
                    targets, matched = [images[name] for name in names], ()
                try:
                    value = term(Scene(batch.lr, hr, student, targets, matched))
                except ValueError as error:
                    raise UserError(f"loss {options.label}: {error}.") from error
                values[options.label] = value.detach()
                total = total + weight * value
        return total, values

    def _compared_with(self, options: LossOptions) -> list[str]:
        """Names of the teachers, or peers, that a term looks at."""
        if options.source == "hr":
            return []
        if options.source == "peers":
            return self.peers
        return [options.teacher] if options.teacher else list(self.shares)

    def _is_of_the_mean(self, options: LossOptions) -> bool:
        return options.on == "sr" and options.source == "teacher" and len(self._compared_with(options)) > 1

    def _mean(self, images: Mapping[str, Tensor]) -> Tensor:
        """The weighted mean of the teachers' outputs."""
        whole = sum(self.shares.values())
        return sum(images[name] * (share / whole) for name, share in self.shares.items())

    def _match(self, name: str, student: Prediction, teacher: Prediction) -> list[MatchedMaps]:
        adapters = self.adapters[_key(name)] if _key(name) in self.adapters else [None] * len(self.pairs[name])
        return [
            MatchedMaps(
                pair, student.features[pair.student.path], teacher.features[pair.teacher.path], adapter, teacher
            )
            for pair, adapter in zip(self.pairs[name], adapters)
        ]

    def _reachable(self, target: Tensor, sr: Tensor) -> Tensor:
        """For a luma student: the target's luma on the student's (bicubic) chroma, which is not the student's to change."""
        return target if self.student.spec.color == "rgb" else with_luma_of(sr.detach(), target)


def _key(name: str) -> str:
    """A teacher's name as a key of nn.ModuleDict, which refuses the names of its own methods."""
    return f"from_{name}"


def term_vector(total: Tensor, terms: dict[str, Tensor]) -> Tensor:
    """Total and terms as one detached vector, total first: what the loop keeps of a step without waiting for the device."""
    return torch.stack([total.detach(), *terms.values()])


class MutualTask(nn.Module):
    """Several students that learn from each other: each has its own objective, in which the others' outputs are fixed targets.

    ``total = sum_k sum_i weight_i term_i(student k)``; no gradient flows from one student into another.

    Args:
        tasks: each student's objective by the student's name; their ``peers`` are the other names.

    Source: Zhang et al., "Deep Mutual Learning", CVPR 2018, equations 5 to 7; all students take their steps at once.
    """

    def __init__(self, tasks: Mapping[str, DistillationTask]) -> None:
        super().__init__()
        self.tasks = nn.ModuleDict(tasks)
        for name, task in tasks.items():
            own = [pair.student.path for student, _, pair in self.matches if student == name]
            task.tap(own + [pair.teacher.path for _, teacher, pair in self.matches if teacher == name])

    @property
    def matches(self) -> list[tuple[str, str, FeaturePair]]:
        """All pairs with the names of their student and their teacher."""
        return [(name, other, pair) for name, task in self.tasks.items() for _, other, pair in task.matches]

    @property
    def students(self) -> dict[str, SRModel]:
        """The models that are trained, by name."""
        return {name: task.student for name, task in self.tasks.items()}

    @property
    def labels(self) -> list[str]:
        """Names of the terms, in their order; those of a peer begin with its name."""
        return [_label(name, label) for name, task in self.tasks.items() for label in task.labels]

    @property
    def helpers(self) -> nn.Module:
        """What is trained or kept beside the students."""
        return nn.ModuleDict({name: task.helpers for name, task in self.tasks.items()})

    def forward(
        self,
        batch: Batch,
        teachers: Mapping[str, Prediction] | None = None,
        weights: Sequence[float] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Total and terms of all students; arguments as in :class:`DistillationTask`."""
        given = {name: task.predict(batch.lr) for name, task in self.tasks.items()}
        total, values = 0.0, {}
        for name, task in self.tasks.items():
            others = {other: _as_target(prediction) for other, prediction in given.items() if other != name}
            part, terms = task.objective(batch, given[name], {**(teachers or {}), **others}, weights)
            total = total + part
            values |= {_label(name, label): value for label, value in terms.items()}
        return total, values


def _label(student: str, term: str) -> str:
    return term if student == "student" else f"{student}_{term}"


def _as_target(prediction: Prediction) -> Prediction:
    """What a student gave, as a teacher gives it: without gradient, clipped to [0, 1]."""
    features = {path: value.detach() for path, value in prediction.features.items()}
    return Prediction(prediction.sr.detach().clamp(0, 1), features)
