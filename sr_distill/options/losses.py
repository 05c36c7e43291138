"""Options of the terms of the objective: one class each, chosen by ``type``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from .base import Options


class WeightSchedule(Options):
    """The weight of a term over the run: ``weight x rise x fall`` between ``start`` and ``stop``, 0 outside."""

    start: int = Field(0, ge=0, description="First step with the term.")
    stop: int | None = Field(None, ge=1, description="First step without the term; None: it stays to the end.")
    warmup: int = Field(0, ge=0, description="Steps of linear rise from 0 after start.")
    decay: Literal["linear", "cosine"] = Field("linear", description="Shape of the way to decay_to.")
    decay_to: float = Field(
        1.0, ge=0, description="Factor on the weight that is reached at stop, or at the end of the run."
    )

    @model_validator(mode="after")
    def _stop_after_start(self) -> WeightSchedule:
        if self.stop is not None and self.stop <= self.start:
            raise ValueError(f"stop ({self.stop}) must be after start ({self.start})")
        return self


class TermOptions(Options):
    """What every term of the objective has."""

    on: Literal["sr"] = Field("sr", description="What is compared: the student's output.")
    against: Literal["hr", "teacher"] = Field(
        "hr", description="With what: the ground truth, or the teacher (always the teacher for features)."
    )
    weight: float = Field(1.0, ge=0, description="Factor of the term in the sum; applied once, in the task.")
    schedule: WeightSchedule | None = Field(None, description="The weight over the run; None: constant.")
    name: str | None = Field(None, min_length=1, description="Name in the log; None: type_on_against, as in l1_sr_hr.")

    @property
    def label(self) -> str:
        """The name under which the term is logged."""
        target = "" if self.on == "features" else f"_{self.against}"
        return self.name or f"{self.type}_{self.on}{target}"  # type: ignore[attr-defined]

    @property
    def needs_teacher(self) -> bool:
        """True where the teacher's output or its features are looked at."""
        return self.on == "features" or self.against == "teacher"


class EitherTerm(TermOptions):
    """A term on images or on feature maps."""

    on: Literal["sr", "features"] = Field(  # type: ignore[assignment]
        "sr",
        description="What is compared: the student's output, or its adapted feature maps with the teacher's (mean over pairs).",
    )

    @model_validator(mode="after")
    def _features_of_the_teacher(self) -> EitherTerm:
        if self.on == "features" and "against" in self.model_fields_set and self.against == "hr":
            raise ValueError("feature maps are compared with the teacher's: leave out against, or say teacher")
        return self


class FeatureTerm(TermOptions):
    """A term on feature maps; its value is the mean over the pairs."""

    on: Literal["features"] = Field("features", description="Feature maps.")  # type: ignore[assignment]
    against: Literal["teacher"] = Field("teacher", description="The teacher's.")  # type: ignore[assignment]


class RelationTerm(FeatureTerm):
    """A term on relations between samples."""

    samples: Literal["images", "patches"] = Field(
        "images",
        description="What a sample is: a whole map of the batch, or a square patch of a map (for small batches).",
    )
    patch: int = Field(8, ge=1, description="Side of a patch, in pixels of the map.")
    max_samples: int = Field(128, ge=3, le=512, description="Of more samples that many, evenly spaced, are used.")


class L1(EitherTerm):
    """Mean absolute difference."""

    type: Literal["l1"] = Field(description="Name of the loss.")


class Charbonnier(EitherTerm):
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


class Logits(EitherTerm):
    """Mean squared difference."""

    type: Literal["logits"] = Field(description="Name of the loss.")


class Frequency(EitherTerm):
    """Difference of amplitude and phase of the Fourier spectra (Fuoli et al. 2021)."""

    type: Literal["frequency"] = Field(description="Name of the loss.")
    amplitude: float = Field(0.5, ge=0, description="Factor of the amplitudes.")
    phase: float = Field(0.5, ge=0, description="Factor of the phases.")


class FitNet(FeatureTerm):
    """Mean squared difference of adapted maps (Romero et al. 2015)."""

    type: Literal["fitnet"] = Field(description="Name of the loss.")


class AttentionTransfer(FeatureTerm):
    """Difference of attention maps (Zagoruyko & Komodakis 2017); needs no adapter."""

    type: Literal["attention_transfer"] = Field(description="Name of the loss.")
    p: int = Field(2, ge=1, le=8, description="Power of the activation.")


class ActivationBoundary(FeatureTerm):
    """Signs of neurons before their activation (Heo et al. 2019)."""

    type: Literal["activation_boundary"] = Field(description="Name of the loss.")
    margin: float = Field(1.0, gt=0, description="How far beyond zero the student is pushed.")


class SoftTarget(FeatureTerm):
    """KL of softened distributions (Hinton et al. 2015) over the channels of each place, or over the places of each channel."""

    type: Literal["soft_target"] = Field(description="Name of the loss.")
    temperature: float = Field(4.0, gt=0, description="Temperature; the loss carries its square.")
    over: Literal["channels", "positions"] = Field("channels", description="Over what the softmax runs.")


class ChannelWise(FeatureTerm):
    """KL between each channel's distribution over places (Shu et al. 2021)."""

    type: Literal["channel_wise"] = Field(description="Name of the loss.")
    temperature: float = Field(1.0, gt=0, description="Temperature; the loss carries its square.")


class Similarity(RelationTerm):
    """Similarities between samples (Tung & Mori 2019); needs no adapter."""

    type: Literal["similarity"] = Field(description="Name of the loss.")


class PKT(RelationTerm):
    """Probabilities that samples are neighbours (Passalis & Tefas 2018); needs no adapter."""

    type: Literal["pkt"] = Field(description="Name of the loss.")


class RKD(RelationTerm):
    """Distances and angles between samples (Park et al. 2019); needs no adapter."""

    type: Literal["rkd"] = Field(description="Name of the loss.")
    distance_weight: float = Field(25.0, ge=0, description="Factor of the distances.")
    angle_weight: float = Field(50.0, ge=0, description="Factor of the angles.")


class SpatialAffinity(FeatureTerm):
    """Affinities between the places of a map (FAKD, He et al. 2020); needs no adapter."""

    type: Literal["spatial_affinity"] = Field(description="Name of the loss.")
    max_positions: int = Field(1024, ge=4, le=4096, description="Larger maps are pooled; memory grows with its square.")


LossOptions = Annotated[
    L1
    | Charbonnier
    | Logits
    | Frequency
    | Perceptual
    | LPIPS
    | FitNet
    | AttentionTransfer
    | ActivationBoundary
    | SoftTarget
    | ChannelWise
    | Similarity
    | PKT
    | RKD
    | SpatialAffinity,
    Field(discriminator="type"),
]
