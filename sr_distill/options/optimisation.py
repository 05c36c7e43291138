"""How weights are updated, and how fast over the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from .base import Options


class ScheduleOptions(Options):
    """Learning rate as a function of the step."""

    type: Literal["constant", "cosine", "multistep", "wsd"] = Field(
        "cosine",
        description="Shape after the warm-up. wsd (warm-up, stable, decay): constant, then linear decay at the end; a run of it can be "
        "prolonged, also after its end (--resume with more total_steps), as if it had been so long from the start.",
    )
    warmup: int = Field(0, ge=0, description="Steps of linear warm-up from 0.")
    min_factor: float = Field(
        0.01, ge=0, le=1, description="cosine, wsd: the last learning rate, as a factor of the first."
    )
    decay: float = Field(0.2, gt=0, le=1, description="wsd: share of the run, at its end, in which the rate decays.")
    milestones: list[int] = Field([], description="multistep: steps at which the learning rate is multiplied by gamma.")
    gamma: float = Field(0.5, gt=0, lt=1, description="multistep: the factor at each milestone.")

    only_with: ClassVar[Mapping[str, tuple[str, tuple[Any, ...]]]] = {
        "min_factor": ("type", ("cosine", "wsd")),
        "decay": ("type", ("wsd",)),
        "milestones": ("type", ("multistep",)),
        "gamma": ("type", ("multistep",)),
    }

    @field_validator("milestones")
    @classmethod
    def _ascending(cls, value: list[int]) -> list[int]:
        if value != sorted(set(value)) or any(step < 1 for step in value):
            raise ValueError("milestones must be positive and ascending")
        return value

    @model_validator(mode="after")
    def _milestones_for_multistep(self) -> ScheduleOptions:
        if self.type == "multistep" and not self.milestones:
            raise ValueError("type multistep needs at least one of milestones")
        return self


_USUAL: Mapping[str, Mapping[str, Any]] = {
    "soap": {"learning_rate": 3e-3, "betas": [0.9, 0.95]},
    "muon": {"learning_rate": 3e-3, "betas": [0.9, 0.99]},
    "adam": {"learning_rate": 1e-3, "betas": [0.9, 0.99]},
    "adamw": {"learning_rate": 1e-3, "betas": [0.9, 0.99]},
}


class OptimizerOptions(Options):
    """How weights are updated."""

    type: Literal["adam", "adamw", "muon", "soap"] = Field(
        "soap",
        description="soap: Adam in the eigenbases of each kernel's gradients; muon: the momentum of each kernel made orthogonal; both leave "
        "vectors to Adam. adam; adamw: with decoupled weight decay.",
    )
    learning_rate: float = Field(
        3e-3,
        gt=0,
        description="Highest learning rate. Not given it is 3e-3 for soap and muon, 1e-3 for adam and adamw.",
    )
    betas: list[float] = Field(
        [0.9, 0.95],
        min_length=2,
        max_length=2,
        description="Decay of the two moments. Not given it is 0.9, 0.95 for soap, 0.9, 0.99 for the others.",
    )
    momentum: float = Field(0.95, ge=0, lt=1, description="muon: decay of the momentum of kernels.")
    precondition_every: int = Field(10, ge=1, description="soap: steps between two updates of the eigenbases.")
    weight_decay: float = Field(0.0, ge=0, description="Weight decay.")
    clip_grad_norm: float | None = Field(None, gt=0, description="Largest norm of the gradient; None: no clipping.")

    only_with: ClassVar[Mapping[str, tuple[str, tuple[Any, ...]]]] = {
        "momentum": ("type", ("muon",)),
        "precondition_every": ("type", ("soap",)),
    }

    @model_validator(mode="before")
    @classmethod
    def _usual_of_the_type(cls, tree: Any) -> Any:
        kind = tree.get("type", "soap") if isinstance(tree, dict) else None
        usual = _USUAL.get(kind) if isinstance(kind, str) else None
        return {**usual, **tree} if usual else tree

    @field_validator("betas")
    @classmethod
    def _below_one(cls, value: list[float]) -> list[float]:
        if any(not 0 <= beta < 1 for beta in value):
            raise ValueError("betas must be at least 0 and below 1")
        return value
