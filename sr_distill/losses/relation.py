"""Losses on relations: between samples of a batch, or between places of a map."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from ..samples import all_samples
from .base import FeatureLoss, LossInputs, register_loss
from .common import evenly_spread, need_samples, pooled_alike, rows, unit

_TINY = 1e-12  # smallest squared distance, as in the authors' code of RKD


def similarity(student: Tensor, teacher: Tensor) -> Tensor:
    """Similarity-preserving loss: ``||G_s - G_t||_F^2 / B^2`` with ``G = row-wise unit(F F^T)``, F the flattened samples.

    Args:
        student, teacher: (B, ...), B at least 2; everything but B may differ. Memory: B^2.

    Raises:
        ValueError: the batches differ or hold one sample, whose similarity to itself says nothing.

    Source: Tung & Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, equations 1-4.
    """
    need_samples("similarity", student, teacher, 2)
    first, second = (unit(x @ x.t(), dim=1) for x in (rows(student), rows(teacher)))
    return (first - second).square().sum() / len(student) ** 2


def pkt(student: Tensor, teacher: Tensor, eps: float = 1e-7) -> Tensor:
    """Probabilistic knowledge transfer: ``mean_ij p_t log((p_t + eps) / (p_s + eps))``, p the row-normalised cosine kernel.

    The kernel is ``(cos(x_i, x_j) + 1) / 2``; each row sums to 1. Mean over all B^2 entries, as the authors' code has it.

    Args:
        student, teacher: (B, ...), B at least 2; everything but B may differ. Memory: B^2.

    Raises:
        ValueError: the batches differ or hold one sample.

    Source: Passalis & Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018, equations 3-6.
    """
    need_samples("pkt", student, teacher, 2)
    p_s, p_t = (_conditional(rows(x)) for x in (student, teacher))
    return (p_t * torch.log((p_t + eps) / (p_s + eps))).mean()


def _conditional(x: Tensor) -> Tensor:
    x = unit(x, dim=1)
    kernel = (x @ x.t() + 1) / 2
    return kernel / kernel.sum(1, keepdim=True)


def rkd(
    student: Tensor,
    teacher: Tensor,
    distance_weight: float = 25.0,
    angle_weight: float = 50.0,
    max_samples: int = 128,
) -> Tensor:
    """Relational distillation: ``w_d huber(D_s, D_t) + w_a huber(A_s, A_t)``, means over B^2 and B^3 entries.

    D_ij is the distance of two samples over the mean of all positive distances; A_ijk the cosine of the angle at sample i
    between j and k. Huber with beta 1.

    Args:
        student, teacher: (B, ...), B at least 3; everything but B may differ.
        max_samples: of a larger batch that many samples, evenly spaced, are used. Memory: B^3 + B^2 D, 8 MB at 128 samples
            (float32) besides 64 KB a feature.

    Raises:
        ValueError: the batches differ or hold fewer than 3 samples, between which there is no angle.

    Source: Park et al., "Relational Knowledge Distillation", CVPR 2019, equations 5-10.
    """
    need_samples("rkd", student, teacher, 3)
    s, t = (evenly_spread(rows(x), max_samples) for x in (student, teacher))
    distance = F.smooth_l1_loss(_distances(s), _distances(t))
    angle = F.smooth_l1_loss(_angles(s), _angles(t))
    return distance_weight * distance + angle_weight * angle


def _distances(x: Tensor) -> Tensor:
    """Pairwise distances over their mean; the diagonal is 0."""
    squares = x.square().sum(1)
    squared = (squares[:, None] + squares[None, :] - 2 * x @ x.t()).clamp(min=_TINY)
    off_diagonal = 1 - torch.eye(len(x), dtype=x.dtype, device=x.device)
    distances = squared.sqrt() * off_diagonal
    # Not distances[off_diagonal].mean(): how many a mask selects is asked of the device, which is waited for.
    return distances / (distances.sum() / (len(x) * (len(x) - 1)))


def _angles(x: Tensor) -> Tensor:
    """Cosines (B, B, B) of the angles at the first sample."""
    direction = unit(x[None, :, :] - x[:, None, :], dim=2)
    return direction @ direction.transpose(1, 2)


def spatial_affinity(student: Tensor, teacher: Tensor, max_positions: int = 2304) -> Tensor:
    """Affinity between places: ``mean |A_s - A_t|`` with ``A = F^T F``, F the map as (C, H W), unit over channels.

    Args:
        student, teacher: (B, C, H, W) with any numbers of channels; of different sizes the larger is average-pooled.
        max_positions: larger maps are average-pooled to at most that many positions. Memory: two matrices of B (H W)^2, 42 MB
            a sample at the default of 48 x 48, which is the paper's.

    Source: He et al., "FAKD: Feature-Affinity Based Knowledge Distillation for Efficient Image Super-Resolution", ICIP 2020,
    equations 2-4.
    """
    student, teacher = pooled_alike(student, teacher)
    height, width = student.shape[-2:]
    if height * width > max_positions:
        shrink = math.sqrt(max_positions / (height * width))
        size = (max(1, math.floor(height * shrink)), max(1, math.floor(width * shrink)))
        student, teacher = (F.adaptive_avg_pool2d(x, size) for x in (student, teacher))
    return (_affinity(student) - _affinity(teacher)).abs().mean()


def _affinity(x: Tensor) -> Tensor:
    x = unit(x.flatten(2), dim=1)
    return x.transpose(1, 2) @ x


class RelationLoss(FeatureLoss):
    """A loss on relations between samples; of several processes, between the samples of all."""

    adapted: ClassVar[bool] = False
    least_samples: ClassVar[int] = 2
    samples: Literal["images", "patches"] = Field(
        "images",
        description="What a sample is: a whole map of the batch, or a square patch of a map (for small batches).",
    )
    pool: int | None = Field(
        None,
        ge=1,
        description="images: average a map to pool x pool places first, so that a sample is a vector of channels x pool x pool values; "
        "None: all places.",
    )
    patch: int = Field(8, ge=1, description="patches: side of a patch, in pixels of the map.")
    max_samples: int = Field(128, ge=3, le=512, description="Of more samples that many, evenly spaced, are used.")

    only_with: ClassVar[Mapping[str, tuple[str, tuple[Any, ...]]]] = {
        "pool": ("samples", ("images",)),
        "patch": ("samples", ("patches",)),
    }

    @property
    def least_batch(self) -> int:
        """As many images as samples are needed, where an image is one."""
        return self.least_samples if self.samples == "images" else 1

    def arguments(self, inputs: LossInputs, student: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        """The samples as vectors."""
        return tuple(evenly_spread(self._vectors(all_samples(x)), self.max_samples) for x in (student, target))

    def _vectors(self, x: Tensor) -> Tensor:
        if self.samples == "patches":
            return patches_as_samples(x, self.patch)
        return (x if self.pool is None else F.adaptive_avg_pool2d(x, self.pool)).flatten(1)


def patches_as_samples(x: Tensor, side: int) -> Tensor:
    """Cut maps (B, C, H, W) into whole squares of ``side``: (B n, C side side), the squares of one map after the other."""
    side = min(side, *x.shape[-2:])
    return F.unfold(x, side, stride=side).transpose(1, 2).flatten(0, 1)


@register_loss(similarity)
class Similarity(RelationLoss):
    """Similarities between samples (Tung & Mori 2019); needs no adapter."""

    type: Literal["similarity"] = Field(description="Name of the loss.")


@register_loss(pkt)
class PKT(RelationLoss):
    """Probabilities that samples are neighbours (Passalis & Tefas 2018); needs no adapter."""

    type: Literal["pkt"] = Field(description="Name of the loss.")


@register_loss(rkd)
class RKD(RelationLoss):
    """Distances and angles between samples (Park et al. 2019); needs no adapter."""

    least_samples: ClassVar[int] = 3
    type: Literal["rkd"] = Field(description="Name of the loss.")
    distance_weight: float = Field(25.0, ge=0, description="Factor of the distances.")
    angle_weight: float = Field(50.0, ge=0, description="Factor of the angles.")

    @model_validator(mode="after")
    def _something(self) -> RKD:
        if self.distance_weight == self.angle_weight == 0:
            raise ValueError("both parts of rkd have factor 0: nothing would be learned")
        return self


@register_loss(spatial_affinity)
class SpatialAffinity(FeatureLoss):
    """Affinities between the places of a map (FAKD, He et al. 2020); needs no adapter."""

    adapted: ClassVar[bool] = False
    type: Literal["spatial_affinity"] = Field(description="Name of the loss.")
    max_positions: int = Field(1024, ge=4, le=4096, description="Larger maps are pooled; memory grows with its square.")
