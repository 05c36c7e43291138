"""Feature maps as images: the principal components of the teacher's map."""

from __future__ import annotations

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from ..features import FeaturePair

_SMALLEST_IMAGE = 32  # below it, the deeper layers of VGG19 and LPIPS's networks have nothing left


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
            raise UserError(f"on: projected needs a teacher's map of at least 3 channels, but the pair is {pair}.")
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
