"""What the terms of the objective can look at in a step, and how a feature map becomes what a loss compares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn

from ..contracts import Prediction
from ..errors import UserError
from ..features import Adapter, FeaturePair

_SMALLEST_IMAGE = 32  # below it, the deeper layers of VGG19 and LPIPS's networks have nothing left


@dataclass(frozen=True)
class MatchedMaps:
    """The maps of one pair.

    Attributes:
        pair: the two layers.
        student, teacher: the maps (B, Cs, hs, ws) and (B, Ct, ht, wt).
        adapter: brings the student's map to the teacher's shape; None where no term needs that.
        network: all that the teacher gave.
    """

    pair: FeaturePair
    student: Tensor
    teacher: Tensor
    adapter: Adapter | None
    network: Prediction

    @cached_property
    def adapted(self) -> Tensor:
        """The student's map in the teacher's shape."""
        return self.adapter(self.student, self.teacher)

    @cached_property
    def decoded(self) -> Tensor:
        """The image that the rest of the teacher makes of the adapted map."""
        return self.network.rest(self.pair.teacher.path, self.adapted).sr


@dataclass(frozen=True)
class Scene:
    """One step as a term sees it.

    Attributes:
        lr, hr: the batch; for a luma student ``hr`` has the chroma that the student cannot change.
        student: what the student gave.
        targets: images that a term on the output compares with, each in turn.
        maps: the pairs of maps that a term on features compares.
    """

    lr: Tensor
    hr: Tensor
    student: Prediction
    targets: Sequence[Tensor]
    maps: Sequence[MatchedMaps]


class SceneLoss(nn.Module):
    """A term that looks at more than two tensors: ``forward(scene)`` gives a scalar.

    Attributes:
        adapted: whether it looks at adapted maps.
    """

    adapted = True

    def match(self, pairs: Sequence[FeaturePair]) -> None:
        """Told once, before training, which layers are compared."""

    def forward(self, scene: Scene) -> Tensor:
        """The unweighted term."""
        raise NotImplementedError


class Comparison(SceneLoss):
    """A loss of two tensors as a term: its mean over what is compared, in one space.

    Args:
        loss: ``loss(student, teacher)``, a scalar; its attribute ``adapted`` says whether it needs maps of one shape.
        space: None: the output and its targets. "maps" and "normalised": the maps. "decoded": the images that the rest of the
            teacher makes of the adapted map and of its own. "projected": both maps as images, see :class:`Projection`.
    """

    def __init__(self, loss: nn.Module, space: str | None) -> None:
        super().__init__()
        self.loss, self.space = loss, space
        self.adapted = getattr(loss, "adapted", True)
        self.projections = nn.ModuleList()

    def match(self, pairs: Sequence[FeaturePair]) -> None:
        """Make the projections."""
        if self.space == "projected":
            self.projections.extend(Projection(pair) for pair in pairs)

    def forward(self, scene: Scene) -> Tensor:
        """Mean of the loss over the targets, or over the pairs."""
        values = [self.loss(student, teacher) for student, teacher in self._compared(scene)]
        return values[0] if len(values) == 1 else torch.stack(values).mean()

    def _compared(self, scene: Scene) -> list[tuple[Tensor, Tensor]]:
        if self.space is None:
            return [(scene.student.sr, target) for target in scene.targets]
        if self.space == "decoded":
            return [(maps.decoded, maps.network.rest.sr) for maps in scene.maps]
        if self.space == "projected":
            return [project(maps.adapted, maps.teacher) for project, maps in zip(self.projections, scene.maps)]
        return [(maps.adapted if self.adapted else maps.student, maps.teacher) for maps in scene.maps]


class Projection(nn.Module):
    """A fixed linear map from the teacher's channels to three: the principal components of its map, as an image.

    ``y = 1/2 + V^T (f - mean) / (4 sigma)``: two standard deviations to each side fill [0, 1]. Mean, components V and deviations
    sigma come from the teacher's maps in the first step (all processes together) and stay; they are kept in checkpoints.
    Maps smaller than 32 pixels are enlarged, for the networks that look at them.

    Raises:
        UserError: the teacher's map has fewer than three channels.
    """

    def __init__(self, pair: FeaturePair) -> None:
        super().__init__()
        channels = pair.teacher.channels
        if channels < 3:
            raise UserError(f"space projected needs a teacher's map of at least 3 channels, but the pair is {pair}.")
        self.register_buffer("weight", torch.zeros(3, channels))
        self.register_buffer("bias", torch.zeros(3))
        self._fitted = False

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Both maps (B, C, h, w) as images (B, 3, h, w)."""
        if not self._fitted:
            if not self.weight.any():
                self._fit(teacher.detach())
            self._fitted = True
        return self._image(student), self._image(teacher)

    def _image(self, x: Tensor) -> Tensor:
        image = F.conv2d(x, self.weight[..., None, None], self.bias)
        enlarge = -(-_SMALLEST_IMAGE // min(image.shape[-2:]))
        return image if enlarge <= 1 else F.interpolate(image, scale_factor=float(enlarge), mode="bilinear")

    def _fit(self, maps: Tensor) -> None:
        samples = maps.movedim(1, -1).flatten(0, -2).cpu().double()
        ones = torch.ones(len(samples), 1, dtype=torch.float64)
        moments = torch.cat([samples, ones], 1).T @ torch.cat([samples, ones], 1)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            on_device = moments.to(maps.device)
            torch.distributed.all_reduce(on_device)
            moments = on_device.cpu()
        mean = moments[:-1, -1] / moments[-1, -1]
        values, vectors = torch.linalg.eigh(moments[:-1, :-1] / moments[-1, -1] - mean.outer(mean))
        largest, deviations = vectors[:, -3:].flip(1), values[-3:].flip(0).clamp(min=1e-12).sqrt()
        # A component's sign is arbitrary: its largest entry is made positive.
        signs = largest.gather(0, largest.abs().argmax(0, keepdim=True)).sign()
        weight = (largest * signs / (4 * deviations)).T
        self.weight.copy_(weight)
        self.bias.copy_(0.5 - weight @ mean)
