"""Losses between distributions (softmax over classes, channels or positions) and on logits."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .common import need_same_shape


def soft_target(student: Tensor, teacher: Tensor, temperature: float = 4.0, dim: int = 1) -> Tensor:
    """KL of softened distributions: ``T^2 mean sum_dim p_t log(p_t / p_s)`` with ``p = softmax(x / T, dim)``.

    Summed over ``dim``, mean over all other dimensions; for (N, C) logits that is "batchmean".

    Args:
        student, teacher: same shape, (N, C) or (B, C, H, W); any range.
        temperature: T; the factor T^2 keeps the size of gradients when T changes.
        dim: dimension of the softmax.

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, section 2.
    """
    need_same_shape("soft_target", student, teacher)
    log_s = F.log_softmax(student / temperature, dim)
    log_t = F.log_softmax(teacher / temperature, dim)
    return (log_t.exp() * (log_t - log_s)).sum(dim).mean() * temperature**2


def logits(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference: ``mean (s - t)^2``; same shape, any range.

    Source: Ba & Caruana, "Do Deep Nets Really Need to be Deep?", NIPS 2014, equation 1.
    """
    need_same_shape("logits", student, teacher)
    return (student - teacher).square().mean()


def mutual(student: Tensor, peer: Tensor, dim: int = 1) -> Tensor:
    """KL at temperature 1 from a peer that is trained alongside: ``mean sum_dim p_peer log(p_peer / p_s)``.

    Args and shapes: as :func:`soft_target`. Pass ``peer`` detached: each network takes its own step.

    Source: Zhang et al., "Deep Mutual Learning", CVPR 2018, equation 4.
    """
    return soft_target(student, peer, temperature=1.0, dim=dim)


def hard_soft(
    task_loss: Tensor, student: Tensor, teacher: Tensor, alpha: float = 0.7, temperature: float = 3.0, kind: str = "kl"
) -> Tensor:
    """Weighted sum of a soft and a hard loss: ``alpha soft + (1 - alpha) task_loss``.

    Args:
        task_loss: a scalar, the loss against the labels.
        student, teacher: logits of the same shape, softmax over dimension 1.
        alpha: share of the soft loss.
        temperature: T of both softmaxes.
        kind: "kl": :func:`soft_target`. "mse": mean squared difference of the softened probabilities, without T^2.

    Raises:
        ValueError: ``kind`` is neither.

    Source: Hinton et al. 2015, section 2.
    """
    if kind == "kl":
        soft = soft_target(student, teacher, temperature)
    elif kind == "mse":
        soft = logits(F.softmax(student / temperature, 1), F.softmax(teacher / temperature, 1))
    else:
        raise ValueError(f"kind is '{kind}'; allowed: kl, mse")
    return alpha * soft + (1 - alpha) * task_loss


def channel_wise(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL between each channel's distribution over positions: ``T^2 / (B C) sum_bc KL(softmax_HW(t / T) || softmax_HW(s / T))``.

    Args:
        student, teacher: same shape (B, C, H, W); any range (log-softmax: large activations stay finite).
        temperature: T; the paper has 4.

    Source: Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021, equation 4.
    """
    need_same_shape("channel_wise", student, teacher)
    return soft_target(student.flatten(2), teacher.flatten(2), temperature, dim=2)
