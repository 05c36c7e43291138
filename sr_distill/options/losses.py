"""Options of the terms of the objective: one class each, chosen by ``type``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ..errors import did_you_mean
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
    against: Literal["hr", "teacher", "peers"] | None = Field(
        None,
        description="With what: the ground truth (hr), the teacher (of several the weighted mean of their outputs), or the peers "
        "of mutual learning (mean over them). None: hr for the output, teacher for features.",
    )
    teacher: str | None = Field(
        None, description="Name of one of several teachers; None: all of them, or the only one."
    )
    weight: float = Field(1.0, ge=0, description="Factor of the term in the sum; applied once, in the task.")
    schedule: WeightSchedule | None = Field(None, description="The weight over the run; None: constant.")
    name: str | None = Field(None, min_length=1, description="Name in the log; None: type_on_against, as in l1_sr_hr.")

    @property
    def label(self) -> str:
        """The name under which the term is logged."""
        target = "" if self.on == "features" and self.source == "teacher" else f"_{self.source}"
        which = f"_{self.teacher}" if self.teacher else ""
        return self.name or f"{self.type}_{self.on}{self.space_label}{target}{which}"  # type: ignore[attr-defined]

    @property
    def source(self) -> Literal["hr", "teacher", "peers"]:
        """What is compared with."""
        return self.against or ("teacher" if self.on == "features" else "hr")

    def looks_at(self, teacher: str) -> bool:
        """Whether it looks at the teacher of this name."""
        return self.source == "teacher" and self.teacher in (None, teacher)

    @property
    def space_of_maps(self) -> str | None:
        """The space in which feature maps are compared; None: the term is on the output."""
        return "maps" if self.on == "features" else None

    @property
    def space_label(self) -> str:
        """What the name says of the space, where it is not that of the maps."""
        return "" if self.space_of_maps in (None, "maps") else f"_{self.space_of_maps}"

    @property
    def replays_teacher(self) -> bool:
        """True where the rest of the teacher is run from changed maps."""
        return False

    @property
    def replays_student(self) -> bool:
        """True where the rest of the student is run from changed maps."""
        return False


class EitherTerm(TermOptions):
    """A term on images or on feature maps."""

    on: Literal["sr", "features"] = Field(  # type: ignore[assignment]
        "sr",
        description="What is compared: the student's output, or its adapted feature maps with the teacher's (mean over pairs).",
    )
    space: Literal["maps", "decoded"] | None = Field(
        None,
        description="Features: the maps themselves (maps, the default), or the images that the rest of the teacher makes of them "
        "(decoded).",
    )

    @model_validator(mode="after")
    def _features_of_the_teacher(self) -> EitherTerm:
        if self.on == "features" and self.against == "hr":
            raise ValueError("feature maps are compared with the teacher's: leave out against, or say teacher")
        if self.on == "sr" and self.space is not None:
            raise ValueError("space is for feature maps: add on: features, or leave it out")
        if self.space_of_maps in ("decoded", "projected") and self.source == "peers":
            raise ValueError(f"space {self.space_of_maps} needs a teacher that does not change, which peers are not")
        return self

    @property
    def space_of_maps(self) -> str | None:
        """The space in which maps are compared; None: the term is on the output."""
        return (self.space or "maps") if self.on == "features" else None

    @property
    def replays_teacher(self) -> bool:
        """True for decoded maps."""
        return self.space_of_maps == "decoded"


class PerceptualTerm(EitherTerm):
    """A term that compares images as a pretrained network sees them."""

    space: Literal["decoded", "projected", "normalised"] | None = Field(  # type: ignore[assignment]
        None,
        description="Features: the images that the rest of the teacher makes of them (decoded, the default), three principal "
        "components of the teacher's map as an image (projected), or the maps themselves, of unit length at each place "
        "(normalised; looks through no network).",
    )

    @property
    def space_of_maps(self) -> str | None:
        """The space in which maps are compared; None: the term is on the output."""
        return (self.space or "decoded") if self.on == "features" else None


class FeatureTerm(TermOptions):
    """A term on feature maps; its value is the mean over the pairs."""

    on: Literal["features"] = Field("features", description="Feature maps.")  # type: ignore[assignment]
    against: Literal["teacher", "peers"] = Field("teacher", description="Whose: the teacher's, or the peers'.")  # type: ignore[assignment]


class RelationTerm(FeatureTerm):
    """A term on relations between samples."""

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

    @model_validator(mode="after")
    def _pooled_images(self) -> RelationTerm:
        if self.pool is not None and self.samples == "patches":
            raise ValueError("pool is for samples: images; patches have the size that patch says")
        return self


class L1(EitherTerm):
    """Mean absolute difference."""

    type: Literal["l1"] = Field(description="Name of the loss.")


class Charbonnier(EitherTerm):
    """Smooth L1: mean of sqrt(d^2 + eps^2)."""

    type: Literal["charbonnier"] = Field(description="Name of the loss.")
    eps: float = Field(1e-3, gt=0, description="Width of the smooth part, in units of the image (0-1).")


class Perceptual(PerceptualTerm):
    """Distance between VGG19 feature maps."""

    type: Literal["perceptual"] = Field(description="Name of the loss.")
    network: Literal["vgg19"] = Field("vgg19", description="Feature network, pretrained on ImageNet.")
    layers: dict[str, float] = Field(
        {"conv3_4": 1.0, "conv4_4": 1.0},
        min_length=1,
        description="Layer and its factor. Names as torchvision's modules (features.16) or spelled out (conv3_4, relu3_4, pool3).",
    )
    distance: Literal["l1", "l2"] = Field("l1", description="Mean absolute or mean squared difference of the maps.")


class LPIPS(PerceptualTerm):
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


class Mutual(FeatureTerm):
    """KL at temperature 1 (Zhang et al. 2018) over the channels of each place, or over the places of each channel."""

    type: Literal["mutual"] = Field(description="Name of the loss.")
    over: Literal["channels", "positions"] = Field("channels", description="Over what the softmax runs.")


class HardSoft(FeatureTerm):
    """alpha x soft loss over the channels of each place + (1 - alpha) x L1 of the output to HR (Hinton et al. 2015)."""

    type: Literal["hard_soft"] = Field(description="Name of the loss.")
    alpha: float = Field(0.7, ge=0, le=1, description="Share of the soft loss.")
    temperature: float = Field(3.0, gt=0, description="Temperature of both softmaxes.")
    kind: Literal["kl", "mse"] = Field("kl", description="KL, or squared difference of the softened probabilities.")


class Contrastive(TermOptions):
    """Near the teacher, away from bicubic images of the batch, in VGG19 (CSD, Wang et al. 2021)."""

    type: Literal["contrastive"] = Field(description="Name of the loss.")
    against: Literal["teacher"] = Field("teacher", description="The teacher.")  # type: ignore[assignment]
    negatives: int = Field(
        4, ge=1, le=64, description="How many LR images of the batch, upscaled by bicubic; memory grows with it."
    )
    layers: dict[str, float] | None = Field(
        None, min_length=1, description="Layer of VGG19 and its factor; None: the paper's (relu1_1 to relu5_1)."
    )


class FCFD(FeatureTerm):
    """Function-consistent feature distillation (Liu et al. 2023): how later layers of both networks read the maps."""

    type: Literal["fcfd"] = Field(description="Name of the loss.")
    against: Literal["teacher"] = Field("teacher", description="The teacher's.")  # type: ignore[assignment]
    appearance: float = Field(1.0, ge=0, description="Factor of the squared difference of adapted maps.")
    student_to_teacher: float = Field(
        1.0, ge=0, description="Factor of the paths that begin in the student and cross into the teacher."
    )
    teacher_to_student: float = Field(
        1.0, ge=0, description="Factor of the paths that begin in the teacher and cross into the student."
    )
    paths: int = Field(1, ge=1, le=8, description="Random paths of each of the two kinds in a step.")
    distance: Literal["l1", "l2"] = Field("l1", description="Between the image of a path and the teacher's own.")

    @model_validator(mode="after")
    def _something(self) -> FCFD:
        if self.appearance == self.student_to_teacher == self.teacher_to_student == 0:
            raise ValueError("every part of fcfd has factor 0: nothing would be learned")
        return self

    @property
    def replays_teacher(self) -> bool:
        """True: paths run through the rest of both networks."""
        return True

    @property
    def replays_student(self) -> bool:
        """True: paths run through the rest of both networks."""
        return True


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
    | Mutual
    | HardSoft
    | ChannelWise
    | Similarity
    | PKT
    | RKD
    | SpatialAffinity
    | FCFD
    | Contrastive,
    Field(discriminator="type"),
]


def teachers_used(terms: Sequence[TermOptions], names: Sequence[str]) -> set[str]:
    """Which of the teachers of these names the terms look at.

    Raises:
        ValueError: a term looks at a teacher that is not there, or does not say at which of several.
    """
    used: set[str] = set()
    for term in terms:
        if term.source != "teacher":
            if term.teacher is not None:
                raise ValueError(
                    f"loss {term.label} names a teacher, but does not compare with it: add against: teacher"
                )
            continue
        if not names:
            raise ValueError("a loss compares with the teacher, but there is no teacher: add teacher.model")
        if term.teacher is not None and term.teacher not in names:
            raise ValueError(
                f"loss {term.label}: there is no teacher '{term.teacher}'.{did_you_mean(term.teacher, names)} "
                f"Teachers: {', '.join(names)}"
            )
        if term.on == "features" and term.teacher is None and len(names) > 1:
            raise ValueError(
                f"loss {term.label}: say whose features, as in teacher: {names[0]} (teachers: {', '.join(names)})"
            )
        used |= {name for name in names if term.looks_at(name)}
    return used
