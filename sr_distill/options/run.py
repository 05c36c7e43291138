"""The options of a training run, as they stand in a YAML file, and what of them fits together."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from .architectures import ArchitectureOptions
from .base import Options
from .losses import LossOptions, check_balances, check_names, check_weights, idle_in, teachers_used
from .optimisation import OptimizerOptions, ScheduleOptions
from .sections import (
    DataOptions,
    FeatureOptions,
    NamedTeacherOptions,
    QuantizationOptions,
    TeacherOptions,
    TrainOptions,
    ValidationOptions,
)

Scale = Literal[2, 3, 4]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")]


class RunOptions(Options):
    """A training run: distillation, or plain training when there is no teacher."""

    name: str = Field(description="Name of the run; its files go to <output_dir>/<name>/.")
    plugins: list[str] = Field(
        [],
        description="Python files (beside this one or below the working folder) or modules that register losses, networks or metrics.",
    )
    scale: Scale = Field(description="Upscaling factor.")
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of the weights and of the crops.")
    device: Device = Field("auto", description="auto, cpu, cuda, cuda:N or mps.")
    output_dir: str = Field("experiments", description="Folder of the runs.")
    student: ArchitectureOptions = Field(description="The network to train.")
    init_from: str | None = Field(
        None,
        description="A trained model of the same network to start from (of the zoo, a file, a run), trained for this scale or another (then "
        "all but the last layers are taken over); None: random weights.",
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
            side = self.data.lr_size * self.scale
            if side < term.least_side and term.on in ("sr", "features", "decoded"):
                raise ValueError(
                    f"loss {term.label} looks at images of at least {term.least_side}x{term.least_side} pixels, and a crop has {side}x{side} "
                    f"(data.lr_size {self.data.lr_size} x scale {self.scale}): take a larger data.lr_size"
                )
        check_weights(self.losses, list(self.all_students), self.train.total_steps)
        check_balances(self.losses, list(self.all_students))
        check_names(self.losses, list(self.all_students))
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
        self._check_features()
        for name in self.all_teachers:
            idle = list(self._idle_options_of(name))
            if idle:
                raise ValueError(
                    f"{' and '.join(idle)} of the teacher '{name}' has no effect: no loss looks at what it changes"
                )
        return self

    def _check_features(self) -> None:
        on_maps = [term for term in self.losses if term.reads_maps and self._sees_features(term)]
        if self.features != FeatureOptions() and not on_maps:
            raise ValueError(
                "features has no effect: no loss looks at feature maps, or each teacher has features of its own"
            )
        for key in idle_in(self.features, on_maps):
            raise ValueError(f"features.{key} has no effect: {_NEEDED[key]}")

    def _sees_features(self, term: LossOptions) -> bool:
        """Whether a term compares the maps that ``features`` says: those of peers, or of a teacher without features of its own."""
        sources = ["peers"] if term.source == "peers" else [name for name in self.all_teachers if term.looks_at(name)]
        return any(self.features_of(source) is self.features for source in sources)

    def _idle_options_of(self, name: str) -> Iterator[str]:
        """Options of a teacher that change nothing, because of what the terms look at."""
        teacher = self.all_teachers[name]
        on_sr = [term for term in self.losses if not term.reads_maps and term.looks_at(name)]
        on_maps = [term for term in self.losses if term.reads_maps and term.looks_at(name)]
        if not on_sr and not teacher.cache:
            yield "cache"
        if not on_sr and teacher.self_ensemble:
            yield "self_ensemble"
        if isinstance(teacher, NamedTeacherOptions):
            alone = len(self.all_teachers) == 1 or all(term.teacher is not None for term in on_sr)
            if teacher.weight != 1 and alone:
                yield "weight"
            if teacher.features is not None and not on_maps:
                yield "features"
            elif teacher.features is not None:
                yield from (f"features.{key}" for key in idle_in(teacher.features, on_maps))

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


_NEEDED = {
    "adapter": "no loss on features needs an adapter",
    "normalise": "no loss on features depends on the size of maps",
}
