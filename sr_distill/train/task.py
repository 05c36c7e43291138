"""Everything trainable in one module, and a step of the objective."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..contracts import Batch, Prediction
from ..features import Adapter, FeaturePair, Need, TappedModel, TappedTeacher
from ..losses import feature_cache
from ..models import SRModel
from .shares import Ledger
from .terms import Link, StepReader, Term


class DistillationTask(nn.Module):
    """The students, the adapters of their feature maps, and the terms of the objective; one student is the common case.

    The teachers stay outside: they are not trained, saved or distributed. ``forward`` returns ``sum_i weight_i term_i`` and the
    unweighted terms by name. Several students learn from each other with the others' outputs as fixed targets: no gradient flows
    from one into another (Zhang et al., "Deep Mutual Learning", CVPR 2018, equations 5 to 7; all take their steps at once).
    Distributed training and compilation wrap this module, so that whatever is trainable is inside.

    Args:
        students: the models to train, by name.
        terms: the objective.
        pairs: the layers that are compared; a term on features is the mean over the pairs.
        teacher_weights: of the teachers, by name, in the mean of their outputs.

    Raises:
        UserError: a layer does not exist, or a pair does not fit the adapter.
    """

    def __init__(
        self,
        students: Mapping[str, SRModel],
        terms: Sequence[Term],
        pairs: Mapping[Link, Sequence[FeaturePair]],
        teacher_weights: Mapping[str, float],
    ) -> None:
        super().__init__()
        self.students = nn.ModuleDict(students)
        self.terms = nn.ModuleList(terms)
        self.pairs = dict(pairs)
        self.teacher_weights = dict(teacher_weights)
        adapted = dict.fromkeys(link for term in terms if term.loss.adapted for link in term.links)
        self.adapters = nn.ModuleDict({link.key: nn.ModuleList(map(Adapter, pairs[link])) for link in adapted})
        most = self.needs([1.0] * len(terms))
        self._tapped = {name: TappedModel(student, most.get(name, Need())) for name, student in students.items()}

    @property
    def labels(self) -> list[str]:
        """Names of the terms, in their order."""
        return [term.label for term in self.terms]

    @property
    def helpers(self) -> nn.Module:
        """What is trained or kept beside the students: the adapters, and what terms remember."""
        return nn.ModuleDict({"adapters": self.adapters, "terms": self.terms})

    @property
    def has_idle_weights(self) -> bool:
        """Whether there may be steps in which some of the weights take no part."""
        steady = [t for t in self.terms if t.loss.schedule is None and t.loss.counts_from == 0 and t.loss.weight > 0]
        whole = {term.student for term in steady if term.loss.reads_output}
        # Of the bridges of fcfd, each step has those of the paths that it draws.
        draws = next(self.terms.parameters(), None) is not None
        return draws or len(steady) < len(self.terms) or whole != set(self.students)

    def weights_at(self, step: int, total_steps: int) -> list[float]:
        """The weight of each term in optimizer step ``step`` of ``total_steps``."""
        return [term.weight_at(step, total_steps) for term in self.terms]

    def needs(self, weights: Sequence[float]) -> dict[str, Need]:
        """What terms of these weights want of each network; one that is not there need not run."""
        wanted: dict[str, Need] = {}
        for term, weight in zip(self.terms, weights, strict=True):
            for name, need in term.needs.items() if weight > 0 else ():
                wanted[name] = wanted.get(name, Need()) | need
        return wanted

    def given_by(
        self, teachers: Mapping[str, TappedTeacher], batch: Batch, weights: Sequence[float]
    ) -> dict[str, Prediction]:
        """What the teachers give for one batch, as far as terms of these weights want it."""
        needs = self.needs(weights)
        return {
            name: teacher(batch.lr, needs[name], batch.teacher_sr.get(name))
            for name, teacher in teachers.items()
            if name in needs
        }

    def forward(
        self,
        batch: Batch,
        teachers: Mapping[str, Prediction] | None = None,
        weights: Sequence[float] | None = None,
        ledger: Ledger | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Total and terms for one batch; a term whose weight is 0 is not computed.

        Args:
            teachers: by name, what :meth:`needs` wants of them.
            weights: of the terms in this step; None: those of the options.
            ledger: told what each term contributes, where this is a step in which that is measured.
        """
        weights = [term.loss.weight for term in self.terms] if weights is None else weights
        needs = self.needs(weights)
        given = {name: model.run(batch.lr, needs[name]) for name, model in self._tapped.items() if name in needs}
        step = StepReader(
            batch, {**(teachers or {}), **given}, self.students, self.teacher_weights, self.pairs, self.adapters
        )
        total, values = batch.lr.new_zeros(()), {}
        active = [(term, weight) for term, weight in zip(self.terms, weights, strict=True) if weight > 0]
        vgg_layers = frozenset().union(*(term.loss.vgg_layers for term, _ in active))
        with feature_cache(vgg_layers, self._autocast(batch.lr.device)):
            for term, weight in active:
                compute = functools.partial(term, step)
                if ledger is None:
                    value = compute()
                else:
                    own = list(self.students[term.student].parameters())
                    value = ledger.measure(term, weight, compute, given[term.student], own)
                values[term.label] = value.detach()
                total = total + weight * value
        return total, values

    def _autocast(self, device: torch.device) -> torch.dtype | None:
        """The dtype in which the networks of this step run, where it is not that of their weights."""
        if torch.is_autocast_enabled(device.type):
            return torch.get_autocast_dtype(device.type)
        return next(iter(self.students.values())).autocast
