"""What a loss is: a pure function, and beside it its options, which are the function's keyword arguments."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin

import torch
from pydantic import Field
from pydantic.fields import FieldInfo
from torch import Tensor, nn

from ..contracts import Prediction
from ..features import Adapter, FeaturePair
from ..options.losses import TermOptions
from ..precision import in_full_precision
from ..registry import LOSSES
from .projection import Projection

L = TypeVar("L", bound="type[Loss]")


@dataclass(frozen=True)
class MatchedMaps:
    """The maps of one pair in one step; what is made of them is made once for all terms.

    Attributes:
        pair: the two layers.
        student, teacher: the maps (B, Cs, hs, ws) and (B, Ct, ht, wt).
        adapter: brings the student's map to the teacher's shape; None where no term needs that.
        source: all that the teacher gave.
    """

    pair: FeaturePair
    student: Tensor
    teacher: Tensor
    adapter: Adapter | None
    source: Prediction

    @cached_property
    def adapted(self) -> Tensor:
        """The student's map in the teacher's shape; a part of the loss, and so in full precision."""
        return in_full_precision(self.adapter, self.student, self.teacher)

    @cached_property
    def target(self) -> Tensor:
        """The teacher's map in the units of the adapted one."""
        return in_full_precision(self.adapter.units.of, self.teacher, self.teacher)

    @cached_property
    def decoded(self) -> Tensor:
        """The image that the rest of the teacher makes of the adapted map."""
        own = in_full_precision(self.adapter.units.restored, self.adapted, self.teacher)
        return self.source.forward_from(self.pair.teacher.path, own).sr


@dataclass(frozen=True)
class LossInputs:
    """What one term can look at in one step.

    Attributes:
        lr, hr: the batch; for a luma student ``hr`` has the chroma that the student cannot change, or is gray as its output.
        student: what the student gave.
        targets: the images that the output is compared with, each in turn.
        maps: the pairs of maps that are compared.
        reachable: an image with what the student cannot change (a luma student's chroma) taken from the student.
    """

    lr: Tensor
    hr: Tensor
    student: Prediction
    targets: Sequence[Tensor]
    maps: Sequence[MatchedMaps]
    reachable: Callable[[Tensor], Tensor]


class Loss(TermOptions):
    """The options of a term together with what it computes.

    A loss of two tensors is a pure function ``f(student, target, **options)``, a class of its options derived from this one, and
    ``@register_loss(f)`` on the class: the keyword arguments of the function are the fields of the class.

    Attributes:
        function: the pure function.
        adapted: whether the student's maps go through the adapter first; a loss that compares relations or attention takes
            maps with any numbers of channels as they are.
        before_activation: whether it is defined on maps before their activation function.
        of_differences: whether its value on images is a mean, over pixels and channels, of a function of their difference alone. A luma
            student's image differs from what it is compared with by the same in R, G and B: gray images give the same value then,
            and are a third of the work.
    """

    function: ClassVar[Callable[..., Tensor]]
    adapted: ClassVar[bool] = True
    before_activation: ClassVar[bool] = False
    of_differences: ClassVar[bool] = False

    @property
    def uses_adapter(self) -> bool:
        """Whether the student's maps are brought to the teacher's shape first."""
        return self.reads_maps and self.adapted

    @property
    def reads_output(self) -> bool:
        """Whether it looks at the student's output."""
        return not self.reads_maps

    @property
    def replays_student(self) -> bool:
        """Whether it runs the student on from a changed map."""
        return False

    @property
    def replays_teacher(self) -> bool:
        """Whether it runs the teacher on from a changed map."""
        return self.on == "decoded"

    @property
    def vgg_layers(self) -> frozenset[int]:
        """The indices of VGG19's layers that it looks at."""
        return frozenset()

    @property
    def keywords(self) -> Mapping[str, Any]:
        """Those of its fields that are keyword arguments of its function."""
        return {name: getattr(self, name) for name in _keywords(self.function) if name in type(self).model_fields}

    def weights_used(self) -> list[str]:
        """The pretrained networks that it looks through, each with the file that its weights come from."""
        return []

    def prepare(self) -> None:
        """Told once, before the first step: what is missing is an error now."""

    def arguments(self, inputs: LossInputs, student: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        """What the function is called with for one of the things that are compared."""
        return student, target

    def __call__(self, *tensors: Tensor) -> Tensor:
        """The unweighted loss, a scalar; of half-precision tensors computed in float32."""
        return in_full_precision(functools.partial(self.function, **self.keywords), *tensors)

    def build(self, pairs: Sequence[FeaturePair], seed: int) -> nn.Module:
        """The module that computes the term from :class:`LossInputs`.

        Args:
            pairs: the layers that it compares.
            seed: of the run, for a loss that draws something.
        """
        return Comparison(self, pairs)


class FeatureLoss(Loss):
    """A loss on feature maps; its value is the mean over the pairs."""

    on: Literal["features"] = Field("features", description="Feature maps.")  # type: ignore[assignment]
    against: Literal["teacher", "peers"] = Field("teacher", description="Whose: the teacher's, or the peers'.")  # type: ignore[assignment]


def register_loss(function: Callable[..., Tensor]) -> Callable[[L], L]:
    """Decorator of the options class of a loss: ties it to its function and makes its name valid in options.

    Raises:
        TypeError: a field is no keyword argument of the function (and the class does not override ``arguments`` or
            ``__call__``, where it could use it), or the name is taken.
    """
    if isinstance(function, type):
        raise TypeError(f"{function.__name__}: give its function: @register_loss(function)")

    def add(options: L) -> L:
        # The bases that come with this package use their fields themselves.
        own = [
            base for base in options.__mro__[:-2] if base is options or not base.__module__.startswith("sr_distill.")
        ]
        named = {name for base in own for name in vars(base).get("__annotations__", {})} - Loss.model_fields.keys()
        fields = {name for name, field in options.model_fields.items() if name in named and not _is_fixed(field)}
        idle = fields - _keywords(function).keys()
        if idle and not any({"__call__", "arguments"} & vars(base).keys() for base in own):
            raise TypeError(
                f"{options.__name__}: {', '.join(sorted(idle))} is no keyword argument of {function.__name__}, so it would have no effect"
            )
        options.function = staticmethod(function)
        return LOSSES.register(options)

    return add


def _is_fixed(field: FieldInfo) -> bool:
    """Whether a field has one possible value, and so cannot be ignored."""
    return get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1


def _keywords(function: Callable[..., Tensor]) -> dict[str, inspect.Parameter]:
    return {name: p for name, p in inspect.signature(function).parameters.items() if p.default is not p.empty}


class Comparison(nn.Module):
    """A loss of tensors as a term: its mean over what ``on`` says is compared.

    Args:
        loss: the loss with its options.
        pairs: the layers that it compares.
    """

    def __init__(self, loss: Loss, pairs: Sequence[FeaturePair] = ()) -> None:
        super().__init__()
        self.loss = loss
        self.projections = nn.ModuleList(Projection(pair) for pair in pairs if loss.on == "projected")

    def forward(self, inputs: LossInputs) -> Tensor:
        """The unweighted term."""
        values = [self.loss(*self.loss.arguments(inputs, *compared)) for compared in self._compared(inputs)]
        return values[0] if len(values) == 1 else torch.stack(values).mean()

    def _compared(self, inputs: LossInputs) -> list[tuple[Tensor, Tensor]]:
        """The student's side and the other, for each target or pair."""
        if self.loss.on == "sr":
            return [(inputs.student.sr, target) for target in inputs.targets]
        if self.loss.on == "decoded":
            return [(maps.decoded, maps.source.forward_from.sr) for maps in inputs.maps]
        if self.loss.on == "projected":
            pairs = zip(self.projections, inputs.maps)
            return [in_full_precision(project, maps.adapted, maps.target) for project, maps in pairs]
        if not self.loss.adapted:
            return [(maps.student, maps.teacher) for maps in inputs.maps]
        return [(maps.adapted, maps.target) for maps in inputs.maps]
