"""What can be named in options: losses, networks and metrics, each an options class that is chosen by its ``type``.

The registries stand on the ground floor, so that options can be checked against them while an entry's class lies beside its code.
Each is filled by the package that is its home, which is imported when somebody first looks, and by plugins.
"""

from __future__ import annotations

import importlib
from collections import ChainMap
from collections.abc import Collection, Iterator, Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import PydanticCustomError, core_schema

T = TypeVar("T", bound=BaseModel)


class Registry(Mapping[str, type[Any]]):
    """Options classes by the name that their field ``type`` allows.

    Args:
        what: what an entry is, in a word, for messages.
        home: the package that fills it.
        apart_from: another registry; a name can be in one of the two only.
    """

    def __init__(self, what: str, home: str, apart_from: Registry | None = None) -> None:
        self.what = what
        self._home = home
        self._apart_from = apart_from
        if apart_from is not None:
            apart_from._apart_from = self
        self._entries: dict[str, type[Any]] = {}

    def register(self, entry: type[T]) -> type[T]:
        """Add an options class; to be used as a decorator.

        Raises:
            TypeError: the class does not say its name as ``type: Literal["name"]``, a field has no description, or another entry
                has the name.
        """
        names = get_args(entry.model_fields["type"].annotation) if "type" in entry.model_fields else ()
        if len(names) != 1:
            raise TypeError(f'{entry.__name__} must say its name: type: Literal["..."] = Field(description="...")')
        bare = [name for name, field in entry.model_fields.items() if not field.description and name != "type"]
        if bare or not entry.__doc__:
            raise TypeError(f"{entry.__name__} must describe {', '.join(bare) or 'itself in a docstring'}")
        taken = self._entries.get(names[0]) or (self._apart_from._entries.get(names[0]) if self._apart_from else None)
        if taken is not None:
            raise TypeError(f"there is a {self.what} '{names[0]}' already ({taken.__module__}): choose another name")
        self._entries[names[0]] = entry
        return entry

    def __getitem__(self, name: str) -> type[Any]:
        importlib.import_module(self._home)
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        importlib.import_module(self._home)
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        importlib.import_module(self._home)
        return len(self._entries)


LOSSES = Registry("loss", "sr_distill.losses")
"""Every loss by its ``type`` in the options."""

STUDENTS = Registry("network", "sr_distill.models")
"""Networks small enough for a phone."""

TEACHERS = Registry("network", "sr_distill.models", apart_from=STUDENTS)
"""Networks to distil from. They can be trained like students, too: a teacher comes from somewhere."""

ARCHITECTURES: Mapping[str, type[Any]] = ChainMap(TEACHERS, STUDENTS)  # type: ignore[arg-type]
"""Every network that can be built by name."""

METRICS = Registry("metric", "sr_distill.evaluate")
"""Every metric by its name."""

register_student = STUDENTS.register
register_teacher = TEACHERS.register
register_metric = METRICS.register


class OneOf:
    """For a field of options (``Annotated[Base, OneOf(LOSSES)]``): one of a registry's classes, chosen by the key ``type``.

    Args:
        entries: the registry.
        short: a plain name stands for ``{type: name}``.
        but: names that are not taken here.
    """

    def __init__(self, entries: Mapping[str, type[Any]], short: bool = False, but: Collection[str] = ()) -> None:
        self._all, self.short, self._but = entries, short, but

    @property
    def entries(self) -> Mapping[str, type[Any]]:
        """What can be chosen, by name."""
        return {name: self._all[name] for name in self._all if name not in self._but} if self._but else self._all

    def class_of(self, value: object) -> type[Any] | None:
        """The class that a value of the options asks for, None where there is none."""
        name = value.get("type") if isinstance(value, Mapping) else value if self.short else None
        return self.entries.get(name) if isinstance(name, str) else None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(self._validate)

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        choices = [handler(entry.__pydantic_core_schema__) for entry in map(self.entries.__getitem__, self.entries)]
        return {"oneOf": [*([{"enum": list(self.entries)}] if self.short else []), *choices]}

    def _validate(self, value: Any) -> Any:
        if isinstance(value, tuple(self.entries.values())):
            return value
        if self.short and isinstance(value, str):
            value = {"type": value}
        if not isinstance(value, Mapping):
            raise PydanticCustomError("no_mapping", "keys and values with a type", {"allowed": list(self.entries)})
        entry = self.class_of(value)
        if entry is None:
            raise PydanticCustomError("unknown_type", "one of the known types", {"allowed": list(self.entries)})
        return entry.model_validate(dict(value))
