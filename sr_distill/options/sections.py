"""The sections of a run's options; every field says what it means."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from ..registry import METRICS, OneOf
from .architectures import ArchitectureOptions
from .base import Options


class TeacherOptions(Options):
    """The network that is imitated; it is never trained."""

    model: str = Field(description="Name of a model of the zoo, one of our .safetensors, or a checkpoint file.")
    architecture: ArchitectureOptions | None = Field(
        None,
        description="Which network the checkpoint belongs to, for a file that does not say so and is not recognised.",
    )
    self_ensemble: bool = Field(
        False,
        description="Average the outputs for the 8 flips and turns of the input (x8): a better teacher, 8 times the cost.",
    )
    cache: bool = Field(
        True,
        description="Compute the teacher's whole-image outputs once, store them as 8 bits beside the LR images and crop them "
        "in step with these. False: run the teacher on every crop.",
    )
    check: bool = Field(
        True,
        description="Stop before the first step where the teacher is worse than bicubic upscaling on the training photos, as the weights "
        "of another scale or network are. False: for a teacher that is, as those trained for looks or for other LR images.",
    )


class PairOptions(Options):
    """A layer of the student and the layer of the teacher that it is compared with."""

    student: str = Field(
        description="Module path in the student, as in body.7; sr-distill features --model M lists them."
    )
    teacher: str = Field(description="Module path in the teacher.")


class FeatureOptions(Options):
    """Which feature maps are compared, and how the student's are made alike."""

    pairs: Annotated[
        Annotated[Literal["auto"], Tag("|auto")] | Annotated[list[PairOptions], Tag("|list")],
        Discriminator(lambda value: "|auto" if isinstance(value, str) else "|list"),
    ] = Field("auto", description="auto: evenly spaced blocks of both networks at LR size; or a list of pairs.")
    count: int = Field(3, ge=1, le=64, description="auto: how many pairs, at most.")
    adapter: Literal["conv1x1", "conv3x3", "none"] = Field(
        "conv1x1",
        description="Convolution from the student's channels to the teacher's; trained with the student, not saved in its file.",
    )
    normalise: Literal["none", "teacher"] = Field(
        "none",
        description="teacher: maps are compared in units of the deviation of the teacher's map (of each layer, measured in the first step), so "
        "that weights mean the same for teachers whose maps are around 1 and around 100. For losses that take adapted maps; the others "
        "do not depend on the size of maps.",
    )

    only_with: ClassVar[Mapping[str, tuple[str, tuple[Any, ...]]]] = {"count": ("pairs", ("auto",))}

    @field_validator("pairs")
    @classmethod
    def _some(cls, value: str | list[PairOptions]) -> str | list[PairOptions]:
        if value == []:
            raise ValueError("give at least one pair, or auto")
        return value


class NamedTeacherOptions(TeacherOptions):
    """One of several teachers."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$", description="Name, for terms that look at this teacher alone.")
    weight: float = Field(1.0, gt=0, description="Share in the weighted mean of the teachers' outputs.")
    features: FeatureOptions | None = Field(
        None, description="Which of its feature maps are compared; None: as features of the run says."
    )

    @field_validator("name")
    @classmethod
    def _not_taken(cls, value: str) -> str:
        if value in ("bicubic", "train", "validation", "student") or value.startswith("peer_"):
            raise ValueError(f"a teacher cannot be called {value}, which is something else in the log")
        return value


class SourceOptions(Options):
    """One folder of training photographs, searched recursively."""

    hr: str = Field(
        description="Folder of HR photos, below the working folder or SR_DISTILL_DATA; 'embedded': the photos inside scikit-image."
    )
    lr: str | None = Field(
        None, description="Folder of LR images with the same names (or NAMEx4); None: LR made by MATLAB-like bicubic."
    )
    downscale: int = Field(
        1,
        ge=1,
        le=8,
        description="Shrink the photos by this factor first: cleaner HR from large, soft or noisy photos.",
    )

    @model_validator(mode="after")
    def _shrink_only_made_lr(self) -> SourceOptions:
        if self.lr is not None and self.downscale != 1:
            raise ValueError("downscale needs LR made from the HR photos: leave out lr, or set downscale to 1")
        return self


class DataOptions(Options):
    """What to train on."""

    train: list[SourceOptions] = Field(min_length=1, description="Folders of training photos.")
    lr_size: int = Field(32, ge=8, description="Side of a training crop, in LR pixels; the HR crop is lr_size x scale.")
    batch_size: int = Field(16, ge=1, description="Crops in a step, over all processes together.")
    on_unreadable: Literal["stop", "skip"] = Field(
        "stop", description="What to do about an image that cannot be used; it is named either way."
    )
    cache_dir: str = Field("datasets/cache", description="Folder for the decoded pairs and the teacher's outputs.")
    device: Literal["cpu", "cuda"] = Field(
        "cpu",
        description="Where pairs and the teacher's outputs are kept. cpu: on the disk, and in memory as far as there is room; cuda: on "
        "the GPU that trains, 3 bytes a pixel, where crops are cut, flipped and turned, too.",
    )
    workers: int = Field(
        0, ge=0, description="Processes that cut crops; 0: the training process itself (fast enough for most students)."
    )

    only_with: ClassVar[Mapping[str, tuple[str, tuple[Any, ...]]]] = {"workers": ("device", ("cpu",))}


class TrainOptions(Options):
    """How long, how precisely, and what is written when."""

    total_steps: int = Field(ge=1, description="Optimizer steps of the run.")
    ema: float = Field(
        0.999,
        ge=0,
        lt=1,
        description="Decay of the averaged weights, which are validated and saved; 0: the weights themselves.",
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="bf16: autocast the student and the teacher to bfloat16; on a CPU it needs AVX-512 or bfloat16 of its own, else it is slow.",
    )
    channels_last: bool = Field(True, description="Memory layout; faster on most devices.")
    threads: int | None = Field(
        None,
        ge=1,
        description="CPU threads of the run; None: as many as PyTorch takes, one a core. Small students are often faster with one, which leaves "
        "the other cores to another run (scripts/benchmark.py train --sweep).",
    )
    compile: bool = Field(False, description="torch.compile the student; pays off on a GPU in long runs.")
    cuda_graph: bool = Field(
        False,
        description="Record steps, from the crops to the averaged weights, as CUDA graphs and replay them, so that small students keep a GPU "
        "busy. Needs data.device cuda, optimizer soap or muon, losses on images with constant weights, and one process.",
    )
    log_every: int = Field(100, ge=1, description="Steps between lines of metrics.jsonl.")
    checkpoint_every: int = Field(1000, ge=1, description="Steps between checkpoints.")
    keep_checkpoints: int = Field(3, ge=1, description="How many of the last checkpoints stay.")
    shares_every: int = Field(
        1000,
        ge=0,
        description="Steps between measurements of each term's share of the gradient (metrics.jsonl, TensorBoard); 0: never.",
    )


class QuantizationOptions(Options):
    """Quantisation-aware training: a trained student goes on with the rounding to 8 bits that ``export.py --precision int8`` does.

    Weights have a step for each output channel, maps a range of 256 levels that follows a moving average, from the range that they have on
    photographs. The student's file has the weights in floats and these ranges: it rounds wherever it is measured or used, exports to int8
    have its ranges, and others its floats.
    """

    momentum: float = Field(
        0.01,
        gt=0,
        le=1,
        description="Share of a step's least and largest value in the moving average of a map's range.",
    )


class ValidationOptions(Options):
    """What the student is measured on while it trains; the best one is saved."""

    sets: list[str] = Field(
        min_length=1,
        description="Set5, Set14, ... below SR_DISTILL_DATA/benchmarks, folders laid out like these, or 'embedded'.",
    )
    every: int = Field(1000, ge=1, description="Steps between validations; there is always one at the end.")
    metrics: list[Annotated[Options, OneOf(METRICS, short=True)]] = Field(
        ["psnr_y", "ssim_y"],
        min_length=1,
        validate_default=True,
        description="What is measured: names of metrics, or {type: name, ...}.",
    )
    best_by: str | None = Field(
        None,
        description="The metric whose mean over the sets decides which student is best and saved as student.safetensors; None: the first.",
    )
    samples: int = Field(
        1,
        ge=0,
        description="How many images of the first set are written at each validation, to <run>/validation/ and to TensorBoard.",
    )

    @field_validator("metrics")
    @classmethod
    def _once_each(cls, value: list[Any]) -> list[Any]:
        repeated = [name for name, count in Counter(metric.type for metric in value).items() if count > 1]
        if repeated:
            raise ValueError(f"{', '.join(repeated)} is there more than once")
        return value

    @model_validator(mode="after")
    def _judged_by_what_is_measured(self) -> ValidationOptions:
        names = [metric.type for metric in self.metrics]
        if self.best_by is not None and self.best_by not in names:
            raise ValueError(f"best_by is {self.best_by}, which is not among the metrics ({', '.join(names)})")
        return self
