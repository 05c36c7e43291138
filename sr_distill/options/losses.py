"""Options of the terms of the objective: one class each, chosen by ``type``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .base import Options


class TermOptions(Options):
    """What every term of the objective has."""

    on: Literal["sr"] = Field("sr", description="What is compared: the student's output.")
    against: Literal["hr", "teacher"] = Field("hr", description="With what: the ground truth, or the teacher's output.")
    weight: float = Field(1.0, ge=0, description="Factor of the term in the sum; applied once, in the task.")
    name: str | None = Field(None, min_length=1, description="Name in the log; None: type_on_against, as in l1_sr_hr.")

    @property
    def label(self) -> str:
        """The name under which the term is logged."""
        return self.name or f"{self.type}_{self.on}_{self.against}"  # type: ignore[attr-defined]


class L1(TermOptions):
    """Mean absolute difference."""

    type: Literal["l1"] = Field(description="Name of the loss.")


class Charbonnier(TermOptions):
    """Smooth L1: mean of sqrt(d^2 + eps^2)."""

    type: Literal["charbonnier"] = Field(description="Name of the loss.")
    eps: float = Field(1e-3, gt=0, description="Width of the smooth part, in units of the image (0-1).")


class Perceptual(TermOptions):
    """Distance between VGG19 feature maps."""

    type: Literal["perceptual"] = Field(description="Name of the loss.")
    network: Literal["vgg19"] = Field("vgg19", description="Feature network, pretrained on ImageNet.")
    layers: dict[str, float] = Field(
        {"conv3_4": 1.0, "conv4_4": 1.0},
        min_length=1,
        description="Layer and its factor. Names as torchvision's modules (features.16) or spelled out (conv3_4, relu3_4, pool3).",
    )
    distance: Literal["l1", "l2"] = Field("l1", description="Mean absolute or mean squared difference of the maps.")


class LPIPS(TermOptions):
    """Learned perceptual image patch similarity (Zhang et al. 2018)."""

    type: Literal["lpips"] = Field(description="Name of the loss.")
    network: Literal["alex", "vgg", "squeeze"] = Field("alex", description="Backbone of LPIPS v0.1.")


LossOptions = Annotated[L1 | Charbonnier | Perceptual | LPIPS, Field(discriminator="type")]
