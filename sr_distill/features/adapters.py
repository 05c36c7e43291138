"""Bring the student's maps to the teacher's channels, size and scale."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from ..precision import FullPrecision
from ..samples import all_samples
from .pairs import FeaturePair


class Adapter(FullPrecision):
    """A convolution to the teacher's channels, then bilinear interpolation to its size where that differs.

    Trained with the student and thrown away with the run: it is in checkpoints, not in the student's file.

    Args:
        pair: the two layers and the kind: conv1x1, conv3x3, or none, which needs equal channels.

    Attributes:
        units: those of what it gives.

    Raises:
        UserError: ``none`` with different channels.
    """

    def __init__(self, pair: FeaturePair) -> None:
        super().__init__()
        channels = pair.student.channels, pair.teacher.channels
        if pair.adapter == "none":
            if channels[0] != channels[1]:
                raise UserError(f"features.adapter none needs equal channels, but the pair is {pair}: choose conv1x1.")
            self.conv: nn.Module = nn.Identity()
        else:
            side = {"conv1x1": 1, "conv3x3": 3}[pair.adapter]
            self.conv = nn.Conv2d(*channels, side, padding=side // 2)
        self.units = Units(pair)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """(B, Cs, hs, ws) to (B, Ct, ht, wt), the shape of ``teacher``, in the units in which they are compared."""
        adapted = _resized(self.conv(student), teacher)
        return self.units.of(adapted, teacher) if isinstance(self.conv, nn.Identity) else adapted


class Bridge(nn.Module):
    """The adapter of function-consistent distillation: convolution 3x3, batch normalisation, LeakyReLU (0.1) where the target is a ReLU's.

    Args:
        pair: the two layers.

    Source: Liu et al., "Function-Consistent Feature Distillation", ICLR 2023, section 3.2, and its repository.
    """

    def __init__(self, pair: FeaturePair) -> None:
        super().__init__()
        self.conv = nn.Conv2d(pair.student.channels, pair.teacher.channels, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        self.norm = BatchNorm(pair.teacher.channels)
        self.slope = 0.1 if pair.teacher.rectified else 1.0

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """(B, Cs, hs, ws) to (B, Ct, ht, wt), the shape of ``teacher``."""
        return F.leaky_relu(self.norm(_resized(self.conv(student), teacher)), self.slope)


class BatchNorm(nn.Module):
    """``w (x - mean) / sqrt(var + 1e-5) + b`` with the statistics of this batch over all processes, and no others (Ioffe & Szegedy 2015).

    PyTorch's SyncBatchNorm runs on GPUs only.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W)."""
        mean = _mean_of_processes(x.mean((0, 2, 3), keepdim=True))
        variance = _mean_of_processes((x - mean).square().mean((0, 2, 3), keepdim=True))
        scale = self.weight[:, None, None] * (variance + 1e-5).rsqrt()
        return (x - mean) * scale + self.bias[:, None, None]


class Units(nn.Module):
    """In what units the maps of a pair are compared: as they are, or (``normalise: teacher``) those of the deviation of the teacher's map.

    The deviation is that of all values of the map about their mean, in the first step, of all processes; it is kept in checkpoints.
    """

    def __init__(self, pair: FeaturePair) -> None:
        super().__init__()
        self.register_buffer("deviation", torch.zeros(()) if pair.normalise == "teacher" else None)
        self._is_known = False

    def of(self, maps: Tensor, teacher: Tensor) -> Tensor:
        """Maps of the teacher's size, in these units."""
        return maps if self.deviation is None else maps / self._measured(teacher)

    def restored(self, maps: Tensor, teacher: Tensor) -> Tensor:
        """Maps in these units as they are in the teacher."""
        return maps if self.deviation is None else maps * self._measured(teacher)

    @torch.no_grad()
    def _measured(self, teacher: Tensor) -> Tensor:
        if not self._is_known:
            if self.deviation == 0:
                mean = _mean_of_processes(teacher.float().mean()[None])
                self.deviation.copy_(
                    _mean_of_processes((teacher - mean).float().square().mean()[None]).sqrt().squeeze()
                )
            if self.deviation == 0:  # a map that is the same everywhere has no size
                self.deviation.fill_(1.0)
            self._is_known = True
        return self.deviation


def _mean_of_processes(x: Tensor) -> Tensor:
    return all_samples(x).mean(0, keepdim=True)


def _resized(student: Tensor, teacher: Tensor) -> Tensor:
    if student.shape[-2:] == teacher.shape[-2:]:
        return student
    return F.interpolate(student, size=teacher.shape[-2:], mode="bilinear", align_corners=False)
