"""Which layer of the student is compared with which layer of the teacher."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass

from ..errors import UserError
from ..models import SRModel
from ..options.sections import FeatureOptions
from .taps import TapPoint, list_taps, no_such_layer

_ACTIVATION_MODULES = ("ReLU", "PReLU", "LeakyReLU", "GELU", "SiLU", "Sigmoid", "Hardswish")


@dataclass(frozen=True)
class FeaturePair:
    """Two layers whose maps are compared, the kind of adapter between them (conv1x1, conv3x3 or none), and how they are normalised."""

    student: TapPoint
    teacher: TapPoint
    adapter: str = "conv1x1"
    normalise: str = "none"

    @property
    def reversed(self) -> FeaturePair:
        """The pair with the two sides exchanged."""
        return FeaturePair(self.teacher, self.student, self.adapter, self.normalise)

    def __str__(self) -> str:
        student, teacher = self.student, self.teacher
        return f"{student.path} ({student.channels} channels) - {teacher.path} ({teacher.channels} channels)"


def choose_pairs(
    student: SRModel, teacher: SRModel, options: FeatureOptions, before_activation: bool = False
) -> list[FeaturePair]:
    """The pairs that the options name, or evenly spaced blocks of both networks for ``auto``.

    Args:
        before_activation: for a loss that is defined on maps before their activation function: for ``auto`` such layers are
            taken, and others are refused.

    Raises:
        UserError: a layer does not exist or gives no feature map, or not the map that the loss is defined on, or a network has no
            chain of blocks to choose from.
    """
    student_taps, teacher_taps = list_taps(student), list_taps(teacher)
    if options.pairs == "auto":
        chain_of = chain_before_activations if before_activation else block_chain
        chains = [chain_of(taps, model.spec.name) for taps, model in ((student_taps, student), (teacher_taps, teacher))]
        count = min(options.count, *(len(chain) for chain in chains))
        return [
            FeaturePair(*pair, options.adapter, options.normalise)
            for pair in zip(*(_evenly(chain, count) for chain in chains))
        ]
    pairs = [
        FeaturePair(
            _find(student_taps, pair.student, student),
            _find(teacher_taps, pair.teacher, teacher),
            options.adapter,
            options.normalise,
        )
        for pair in options.pairs
    ]
    for pair in pairs if before_activation else []:
        for tap, model in ((pair.student, student), (pair.teacher, teacher)):
            if not tap.before_activation:
                raise UserError(
                    f"{model.spec.name}: the layer {tap.path} does not go into an activation function, but a loss (activation_boundary) "
                    "is defined on maps before their activation: name other layers, or set features.pairs to auto."
                )
    return pairs


def chain_before_activations(taps: list[TapPoint], name: str) -> list[TapPoint]:
    """Layers of LR size whose maps go into an activation function: the longest row of like ones (body.0.conv1, body.1.conv1, ...).

    Raises:
        UserError: there is none.
    """
    chains: dict[tuple[str, int], list[TapPoint]] = defaultdict(list)
    for tap in taps:
        if tap.before_activation and tap.stride == 1:
            chains[re.sub(r"\d+", "*", tap.path), tap.channels].append(tap)
    if not chains:
        raise UserError(
            f"{name}: no layer of the size of the LR image goes straight into an activation function, which activation_boundary needs."
        )
    return max(chains.values(), key=len)


def block_chain(taps: list[TapPoint], name: str) -> list[TapPoint]:
    """The body of a network as a chain of blocks: sibling layers of one class with as many channels, at LR size.

    Of a convolution followed by its activation the activation is taken. Of several chains the outermost of at least three
    members is taken; failing that, the longest.

    Raises:
        UserError: no layer gives a map of the size of the LR image.
    """
    siblings: dict[str, list[TapPoint]] = defaultdict(list)
    for tap in taps:
        if tap.stride == 1:
            siblings[tap.path.rpartition(".")[0]].append(tap)
    chains: dict[tuple[str, str, int], list[TapPoint]] = defaultdict(list)
    for parent, group in siblings.items():
        for tap in _after_activations(group):
            chains[parent, tap.kind, tap.channels].append(tap)
    if not chains:
        raise UserError(
            f"{name}: no layer gives a feature map of the size of the LR image; name the pairs in features.pairs."
        )
    return max(chains.values(), key=lambda chain: (min(len(chain), 3), -chain[0].path.count("."), len(chain)))


def _after_activations(group: list[TapPoint]) -> list[TapPoint]:
    followed = [*group[1:], None]
    return [tap for tap, after in zip(group, followed) if after is None or after.kind not in _ACTIVATION_MODULES]


def _evenly(chain: list[TapPoint], count: int) -> list[TapPoint]:
    """``count`` members at equal distances, the last one among them."""
    return [chain[round((k + 1) * len(chain) / count) - 1] for k in range(count)]


def _find(taps: list[TapPoint], path: str, model: SRModel) -> TapPoint:
    for tap in taps:
        if tap.path == path:
            return tap
    raise no_such_layer(model, path, [tap.path for tap in taps], " that gives a feature map")
