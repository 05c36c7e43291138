"""Losses that compare feature maps place by place."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from .base import FeatureLoss, register_loss
from .common import need_same_shape, pooled_alike, rows, unit
from .pixel import PixelLoss


def fitnet(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of feature maps: ``mean (s - t)^2``; same shape, the student's already through its regressor.

    Source: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, equation 3.
    """
    need_same_shape("fitnet", student, teacher)
    return (student - teacher).square().mean()


def attention_transfer(student: Tensor, teacher: Tensor, p: int = 2) -> Tensor:
    """Difference of attention maps: ``mean (Q_s - Q_t)^2`` with ``Q = unit(vec(mean_c |f|^p))``.

    The form of the authors' code; the paper's text has ``||Q_s - Q_t||_2``, some 300 times as large.

    Args:
        student, teacher: (B, C, H, W) with any numbers of channels and any sizes: the larger is average-pooled first.
        p: power of the activation.

    Source: Zagoruyko & Komodakis, "Paying More Attention to Attention", ICLR 2017, section 3.1 and its repository.
    """
    student, teacher = pooled_alike(student, teacher)
    return (_attention(student, p) - _attention(teacher, p)).square().mean()


def _attention(x: Tensor, p: int) -> Tensor:
    return unit(x.abs().pow(p).mean(1).flatten(1), dim=1)


def activation_boundary(student: Tensor, teacher: Tensor, margin: float = 1.0) -> Tensor:
    """Push the student across zero where the teacher's neuron is on the other side, before the activation.

    ``3/1000 / B sum [(s + m)^2 1(s > -m, t <= 0) + (s - m)^2 1(s <= m, t > 0)]``; 3/1000 is the factor of the authors' code.

    Args:
        student, teacher: same shape (B, ...), before the activation function.
        margin: m.

    Source: Heo et al., "Knowledge Transfer via Distillation of Activation Boundaries", AAAI 2019, equation 6.
    """
    need_same_shape("activation_boundary", student, teacher)
    off = (student + margin).square() * ((student > -margin) & (teacher <= 0))
    on = (student - margin).square() * ((student <= margin) & (teacher > 0))
    return (off + on).sum() / len(student) * 3 / 1000


def frequency(student: Tensor, teacher: Tensor, amplitude: float = 0.5, phase: float = 0.5) -> Tensor:
    """L1 between spectra: ``a mean | |S| - |T| | + b mean |wrap(arg S - arg T)|`` with S, T the orthonormal 2-D DFTs.

    Half of the spectrum is used, the other half is its mirror image. Phases are compared around the circle (in [0, pi]), and
    not where a coefficient is zero, which has none.

    Args:
        student, teacher: same shape (B, C, H, W); images or feature maps.
        amplitude, phase: the factors a and b.

    Source: Fuoli et al., "Fourier Space Losses for Efficient Perceptual Image Super-Resolution", ICCV 2021, equations 4-6,
    without the Hann window of the paper.
    """
    need_same_shape("frequency", student, teacher)
    s, t = (
        torch.fft.rfft2(x.float() if x.dtype in (torch.bfloat16, torch.float16) else x, norm="ortho")
        for x in (student, teacher)
    )
    turn = s * t.conj()
    has_phase = turn.abs() > torch.finfo(turn.real.dtype).eps
    angle = torch.atan2(torch.where(has_phase, turn.imag, 0.0), torch.where(has_phase, turn.real, 1.0))
    return amplitude * (_modulus(s) - _modulus(t)).abs().mean() + phase * angle.abs().mean()


def _modulus(x: Tensor) -> Tensor:
    """|x| with a zero gradient at zero."""
    squared = x.real.square() + x.imag.square()
    safe = squared > torch.finfo(squared.dtype).tiny
    return torch.where(safe, squared, 1.0).sqrt() * safe


def cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """Direction alone: ``mean_n (1 - <s_n, t_n> / (|s_n| |t_n|))``, of vectors or whole maps as vectors.

    Args:
        student, teacher: same shape (B, ...), any range; a zero vector has distance 1 from everything.

    Source: PyTorch's tutorial "Knowledge Distillation" (cosine loss between hidden representations).
    """
    need_same_shape("cosine", student, teacher)
    return (1 - (unit(rows(student), 1) * unit(rows(teacher), 1)).sum(1)).mean()


@register_loss(fitnet)
class FitNet(FeatureLoss):
    """Mean squared difference of adapted maps (Romero et al. 2015)."""

    type: Literal["fitnet"] = Field(description="Name of the loss.")


@register_loss(cosine)
class Cosine(FeatureLoss):
    """Angle between adapted maps, each taken as one vector."""

    type: Literal["cosine"] = Field(description="Name of the loss.")


@register_loss(attention_transfer)
class AttentionTransfer(FeatureLoss):
    """Difference of attention maps (Zagoruyko & Komodakis 2017); needs no adapter."""

    adapted: ClassVar[bool] = False
    type: Literal["attention_transfer"] = Field(description="Name of the loss.")
    p: int = Field(2, ge=1, le=8, description="Power of the activation.")


@register_loss(activation_boundary)
class ActivationBoundary(FeatureLoss):
    """Signs of neurons before their activation (Heo et al. 2019); of automatic pairs, layers before an activation are taken."""

    before_activation: ClassVar[bool] = True
    type: Literal["activation_boundary"] = Field(description="Name of the loss.")
    margin: float = Field(1.0, gt=0, description="How far beyond zero the student is pushed.")


@register_loss(frequency)
class Frequency(PixelLoss):
    """Difference of amplitude and phase of the Fourier spectra (Fuoli et al. 2021)."""

    type: Literal["frequency"] = Field(description="Name of the loss.")
    amplitude: float = Field(0.5, ge=0, description="Factor of the amplitudes.")
    phase: float = Field(0.5, ge=0, description="Factor of the phases.")

    @model_validator(mode="after")
    def _something(self) -> Frequency:
        if self.amplitude == self.phase == 0:
            raise ValueError("both parts of frequency have factor 0: nothing would be learned")
        return self
