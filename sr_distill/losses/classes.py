"""Losses on the logits of classifiers that look at what is the right class, or at how samples and classes relate."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from .base import FeatureLoss, register_loss
from .common import need_same_shape, unit

_EPS = 1e-8


def decoupled(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    t_squared: bool = True,
) -> Tensor:
    """Soft target in two parts: ``T^2 / N sum_n (alpha KL(b_t || b_s) + beta KL(q_t || q_s))``.

    b is the pair (probability of the right class, of all others), q the distribution over the others; all of softmax(logits / T). With
    two classes the second part is 0.

    Args:
        student, teacher: (N, C) logits, C at least 2.
        labels: (N,) the right classes.
        alpha, beta: factors of the parts (target class, non-target class).
        temperature: T.
        t_squared: False: without the factor T^2.

    Source: Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, equation 7.
    """
    need_same_shape("decoupled", student, teacher)
    right = F.one_hot(labels, student.shape[1]).bool()
    # Logarithms of sums of probabilities as logsumexp, so that none is taken of what has become 0.
    (own_s, rest_s, others_s), (own_t, rest_t, others_t) = (_split(x / temperature, right) for x in (student, teacher))
    of_target = own_t.exp() * (own_t - own_s) + rest_t.exp() * (rest_t - rest_s)
    of_others = (others_t.exp() * (others_t - others_s)).masked_fill(right, 0.0).sum(1)
    return (alpha * of_target + beta * of_others).mean() * (temperature**2 if t_squared else 1)


def _split(scaled: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities: of the right class, of all others together, and of each other among the others (0 at the right one)."""
    logs = F.log_softmax(scaled, 1)
    own = logs[right]
    rest = logs.masked_fill(right, float("-inf")).logsumexp(1)
    others = (logs - rest[:, None]).masked_fill(right, 0.0)
    return own, rest, others


def dist(
    student: Tensor,
    teacher: Tensor,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 1.0,
    t_squared: bool = True,
) -> Tensor:
    """Correlations of predictions: ``T^2 (beta (1 - mean_n r(p_n, q_n)) + gamma (1 - mean_c r(p_c, q_c)))``.

    p, q are softmax(logits / T) of student and teacher, r Pearson's correlation: over the classes of each sample, and over the samples
    for each class; 1e-8 is added to the product of norms in r, as in the authors' code.

    Args:
        student, teacher: (N, C) logits, or maps (B, C, H, W), of which each place is a sample. With one sample the second part is
            constant.
        beta, gamma: factors of the parts.
        temperature: T.
        t_squared: False: without the factor T^2, as in the paper; the authors' code has it.

    Source: Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022, equations 6 to 9.
    """
    need_same_shape("dist", student, teacher)
    precise = torch.promote_types(student.dtype, torch.float32)  # what is left of p without its mean is small
    p, q = (F.softmax(x.movedim(1, -1).flatten(0, -2) / temperature, 1, precise) for x in (student, teacher))
    between_classes, between_samples = (1 - _correlation(p, q, dim).mean() for dim in (1, 0))
    return (beta * between_classes + gamma * between_samples) * (temperature**2 if t_squared else 1)


def _correlation(p: Tensor, q: Tensor, dim: int) -> Tensor:
    a, b = (x - x.mean(dim, keepdim=True) for x in (p, q))
    # |a| as <a, a / |a|>, whose gradient is finite where a is zero.
    norms = [(x * unit(x, dim)).sum(dim) for x in (a, b)]
    return (a * b).sum(dim) / (norms[0] * norms[1] + _EPS)


@register_loss(dist)
class Dist(FeatureLoss):
    """Correlations of softened maps (DIST, Huang et al. 2022): over the channels of each place, and over all places for each channel."""

    type: Literal["dist"] = Field(description="Name of the loss.")
    beta: float = Field(1.0, ge=0, description="Factor of the correlations between channels.")
    gamma: float = Field(
        1.0, ge=0, description="Factor of the correlations between places; one of the two must be above 0."
    )
    temperature: float = Field(1.0, gt=0, description="Temperature of both softmaxes.")
    t_squared: bool = Field(True, description="The factor temperature squared, which the paper lacks.")

    @model_validator(mode="after")
    def _something_is_compared(self) -> Dist:
        if self.beta == self.gamma == 0:
            raise ValueError("nothing is compared with beta: 0 and gamma: 0")
        return self
