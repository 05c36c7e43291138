"""The options of a training run, as they stand in a YAML file; every field says what it means."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from ..registry import METRICS, OneOf
from .architectures import ArchitectureOptions
from .base import Options
from .losses import LossOptions, check_balances, check_names, check_weights, teachers_used
from .optimisation import OptimizerOptions, ScheduleOptions

Scale = Literal[2, 3, 4]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")]


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
        "fp32", description="bf16: autocast the student and the teacher to bfloat16."
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


class RunOptions(Options):
    """A training run: distillation, or plain training when there is no teacher."""

    name: str = Field(description="Name of the run; its files go to <output_dir>/<name>/.")
    plugins: list[str] = Field(
        [],
        description="Python files (beside this one or below the working folder) or modules that register losses, networks or metrics.",
    )
    scale: Scale = Field(description="Upscaling factor.")
    seed: int = Field(0, ge=0, description="Seed of the weights and of the crops.")
    device: Device = Field("auto", description="auto, cpu, cuda, cuda:N or mps.")
    output_dir: str = Field("experiments", description="Folder of the runs.")
    student: ArchitectureOptions = Field(description="The network to train.")
    init_from: str | None = Field(
        None,
        description="A .safetensors of the same network to start from, trained for this scale or another (then all but the last "
        "layers are taken over); None: random weights.",
    )
    peers: list[ArchitectureOptions] = Field(
        [],
        description="Mutual learning: further students, trained along with student; terms against: peers compare each with the "
        "others. Each ends as its own file.",
    )
    teacher: TeacherOptions | None = Field(None, description="The network to distil from; None: plain training.")
    teachers: list[NamedTeacherOptions] = Field([], description="Several networks to distil from, instead of teacher.")
    data: DataOptions = Field(description="What to train on.")
    losses: list[LossOptions] = Field(min_length=1, description="The objective: a weighted sum of terms.")
    features: FeatureOptions = Field(FeatureOptions(), description="Feature maps for the terms on features.")
    optimizer: OptimizerOptions = Field(OptimizerOptions(), description="How weights are updated.")
    schedule: ScheduleOptions = Field(ScheduleOptions(), description="Learning rate as a function of the step.")
    train: TrainOptions = Field(description="How long, how precisely, and what is written when.")
    quantization: QuantizationOptions | None = Field(
        None,
        description="Train for int8, from a trained student (init_from); None: in floats.",
    )
    validation: ValidationOptions | None = Field(
        None, description="What the student is measured on; None: the last weights are saved."
    )

    @field_validator("name")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
            raise ValueError("a name is made of letters, digits, '.', '_' and '-', and starts with a letter or digit")
        return value

    @property
    def all_teachers(self) -> dict[str, TeacherOptions]:
        """The teachers by name; a single one is called "teacher"."""
        if self.teacher is not None:
            return {"teacher": self.teacher}
        return {teacher.name: teacher for teacher in self.teachers}

    @property
    def teacher_weights(self) -> dict[str, float]:
        """The weight of each teacher in the mean of their outputs."""
        return {name: getattr(teacher, "weight", 1.0) for name, teacher in self.all_teachers.items()}

    @property
    def all_students(self) -> dict[str, ArchitectureOptions]:
        """The networks to train by name: "student", and its peers "peer_1", "peer_2", ..."""
        return {"student": self.student, **{f"peer_{n}": peer for n, peer in enumerate(self.peers, start=1)}}

    @property
    def uses_features(self) -> bool:
        """True where a term of the objective looks at feature maps."""
        return any(term.reads_maps for term in self.losses)

    def features_of(self, teacher: str) -> FeatureOptions:
        """Which feature maps are compared with those of this teacher."""
        return getattr(self.all_teachers.get(teacher), "features", None) or self.features

    @model_validator(mode="after")
    def _consistent(self) -> RunOptions:
        if self.uses_features and self.train.compile:
            raise ValueError(
                "layers of a compiled student cannot be tapped: set train.compile to false, or leave out losses on features"
            )
        self._check_recording()
        if self.quantization is not None and self.init_from is None:
            raise ValueError("quantization goes on from a trained student: name its file with init_from")
        if self.quantization is not None and self.train.precision != "fp32":
            raise ValueError(
                f"quantization has a rounding of its own: train.precision must be fp32, not {self.train.precision}"
            )
        for term in self.losses:
            if self.data.batch_size < term.least_batch:
                raise ValueError(
                    f"loss {term.label} compares at least {term.least_batch} images with each other, and data.batch_size is "
                    f"{self.data.batch_size}: take a larger batch, or samples: patches"
                )
        check_weights(self.losses, list(self.all_students), self.train.total_steps)
        check_balances(self.losses)
        check_names(self.losses)
        return self

    def _check_recording(self) -> None:
        """What cannot be replayed: steps in which the program takes part."""
        if not self.train.cuda_graph:
            return
        if self.data.device != "cuda":
            raise ValueError(
                f"train.cuda_graph replays steps on the GPU alone: data.device must be cuda, not {self.data.device}"
            )
        if self.optimizer.type not in ("soap", "muon"):
            raise ValueError(f"train.cuda_graph records steps of soap and muon, not of {self.optimizer.type}")
        if (
            self.uses_features
            or self.quantization is not None
            or any(term.schedule is not None for term in self.losses)
        ):
            raise ValueError(
                "train.cuda_graph records steps that are alike: set it to false, or leave out losses on features, schedules of losses "
                "and quantization"
            )

    @model_validator(mode="after")
    def _teachers_and_terms(self) -> RunOptions:
        if self.teacher is not None and self.teachers:
            raise ValueError("teacher and teachers are both there: put them all into teachers")
        repeated = [name for name, count in Counter(t.name for t in self.teachers).items() if count > 1]
        if repeated:
            raise ValueError(f"several teachers are called {', '.join(repeated)}: give each a name of its own")
        names = list(self.all_teachers)
        used = teachers_used(self.losses, names)
        unused = [name for name in names if name not in used]
        if unused and not used:
            raise ValueError(
                "there is a teacher, but no loss uses it: add a loss with 'against: teacher', or remove the teacher"
            )
        if unused:
            raise ValueError(f"no loss uses the teacher {', '.join(unused)}: add one, or remove it")
        return self

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> RunOptions:
        """What a term would have to look at is refused where none does: no option is ignored in silence."""
        sources = {
            s
            for term in self.losses
            if term.reads_maps
            for s in (self.all_teachers if term.source == "teacher" else ["peers"])
        }
        if self.features != FeatureOptions() and not any(
            self.features_of(source) is self.features for source in sources
        ):
            raise ValueError(
                "features has no effect: no loss looks at feature maps, or each teacher has features of its own"
            )
        if self.features.adapter != "conv1x1" and not any(term.uses_adapter for term in self.losses):
            raise ValueError("features.adapter has no effect: no loss on features needs an adapter")
        if self.features.normalise != "none" and not any(term.compares_values for term in self.losses):
            raise ValueError("features.normalise has no effect: no loss on features depends on the size of maps")
        for name, teacher in self.all_teachers.items():
            on_sr = [term for term in self.losses if not term.reads_maps and term.looks_at(name)]
            on_maps = [term for term in self.losses if term.reads_maps and term.looks_at(name)]
            idle = []
            if not on_sr:
                idle += [
                    key
                    for key, idle_value in (("cache", True), ("self_ensemble", False))
                    if getattr(teacher, key) != idle_value
                ]
            if isinstance(teacher, NamedTeacherOptions):
                alone = len(self.all_teachers) == 1 or all(term.teacher is not None for term in on_sr)
                if teacher.weight != 1 and alone:
                    idle.append("weight")
                if teacher.features is not None and not on_maps:
                    idle.append("features")
            if idle:
                raise ValueError(
                    f"{' and '.join(idle)} of the teacher '{name}' has no effect: no loss looks at what it changes"
                )
        return self

    @model_validator(mode="after")
    def _peers_and_terms(self) -> RunOptions:
        among_peers = [term for term in self.losses if term.source == "peers"]
        if among_peers and not self.peers:
            raise ValueError("a loss compares with the peers, but there are none: add peers, a list of networks")
        if self.peers and not among_peers:
            raise ValueError("there are peers, but no loss compares with them: add a loss with 'against: peers'")
        if any(term.reads_maps for term in among_peers) and self.features.pairs != "auto":
            raise ValueError(
                "features.pairs must be auto where peers compare their features: each two have their own pairs"
            )
        return self
