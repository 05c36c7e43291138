"""The base of every options class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator


class Options(BaseModel):
    """Strict and frozen: an unknown key or a wrong type is an error, and nothing changes after loading.

    Attributes:
        only_with: fields that have an effect only where another field has one of some values: ``{"gamma": ("type",
            ("multistep",))}``. Set to anything but their default elsewhere, they are refused: no option is ignored in silence.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
    only_with: ClassVar[Mapping[str, tuple[str, tuple[Any, ...]]]] = {}

    @model_validator(mode="after")
    def _nothing_idle(self) -> Options:
        for name, (other, values) in self.only_with.items():
            if (
                getattr(self, other) not in values
                and getattr(self, name) != type(self).model_fields[name].get_default()
            ):
                allowed = ", ".join(str(value) for value in values)
                raise ValueError(
                    f"{name} has no effect with {other}: {getattr(self, other)} (it is for {allowed}): leave it out"
                )
        return self
