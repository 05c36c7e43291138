"""Networks as a training step runs them: once, no deeper than needed, with the maps of chosen layers."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..contracts import Prediction
from ..data.color import rgb_to_gray
from ..models import SRModel, Teacher
from ..models.teacher import clipped
from .substitution import ReplayTaps
from .taps import Taps


@dataclass(frozen=True)
class Need:
    """What is wanted of a network; ``a | b`` is what both want.

    Attributes:
        sr: its output.
        color: in colour; without, a luma network gives gray, which is cheaper and all that it has made.
        paths: the layers whose maps are read.
        replay: running it on from a changed map.
    """

    sr: bool = False
    color: bool = False
    paths: frozenset[str] = frozenset()
    replay: bool = False

    def __or__(self, other: Need) -> Need:
        return Need(
            self.sr or other.sr, self.color or other.color, self.paths | other.paths, self.replay or other.replay
        )


class TappedModel:
    """A network and the layers of it that can be read.

    Args:
        model: the network.
        most: all that will ever be wanted of it.

    Raises:
        UserError: a layer does not exist.
    """

    def __init__(self, model: SRModel, most: Need) -> None:
        self.model = model
        self._taps = Taps(model, sorted(most.paths))
        self._replay_taps = ReplayTaps(model, sorted(most.paths)) if most.replay else None

    def run(self, lr: Tensor, need: Need) -> Prediction:
        """What is wanted, for RGB (B, 3, H, W) in [0, 1]; the output is not clipped."""
        if not need.color and self.model.spec.color == "y":
            lr = rgb_to_gray(lr)
        if need.replay:
            return self._replay_taps.run(lr)
        if need.paths:
            return self._taps.run(lr, need.sr, need.paths)
        return Prediction(self.model(lr) if need.sr else None)


class TappedTeacher(nn.Module):
    """A frozen teacher as a training step runs it; arguments as of :class:`TappedModel`."""

    def __init__(self, teacher: Teacher, most: Need) -> None:
        super().__init__()
        self.teacher = teacher
        self._tapped = TappedModel(teacher.model, most)

    @torch.no_grad()
    def forward(self, lr: Tensor, need: Need, stored_sr: Tensor | None = None) -> Prediction:
        """What is wanted, for RGB (B, 3, H, W) in [0, 1]; its output, clipped to [0, 1], is taken from ``stored_sr`` where given."""
        make_sr = need.sr and stored_sr is None
        if make_sr and self.teacher.self_ensemble:
            make_sr, stored_sr = False, self.teacher(lr)
        seen = self._tapped.run(lr, dataclasses.replace(need, sr=make_sr))
        return dataclasses.replace(seen, sr=clipped(seen.sr) if make_sr else stored_sr)
