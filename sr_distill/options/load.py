"""Read a YAML file and ``key.path=value`` overrides into :class:`RunOptions`, reporting all problems at once."""

from __future__ import annotations

import contextlib
import re
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from ..errors import UserError, did_you_mean
from ..plugins import load_plugins
from ..registry import OneOf
from .architectures import Architecture, ArchitectureOptions
from .run import RunOptions
from .yaml_1_2 import Dumper, Loader

T = TypeVar("T")


def load_options(path: str | Path, overrides: Sequence[str] = ()) -> RunOptions:
    """Read the options of a run.

    Args:
        path: a YAML file.
        overrides: ``key.path=value`` each, as ``train.total_steps=500`` or ``losses.0.weight=0.5``.

    Raises:
        UserError: the file cannot be read, or an option is wrong; every problem is listed with its key path.
    """
    path = Path(path)
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)
    except OSError as error:
        raise UserError(f"cannot read the options file {path}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text file (UTF-8): {error.reason}.") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected 'key: value' lines, got {type(tree).__name__}.")
    for override in overrides:
        _apply_override(tree, override)
    if isinstance(tree.get("plugins"), list):  # first of all: what they register can be named in the rest
        load_plugins([str(name) for name in tree["plugins"]], path.parent)
    return validate(RunOptions, tree, str(path))


def validate(kind: Any, tree: Any, source: str) -> Any:
    """Check ``tree`` (plain dicts and lists) against an options class or a union of them.

    Raises:
        UserError: lists every problem: key path, value, what is allowed, the nearest match.
    """
    try:
        return TypeAdapter(kind).validate_python(tree)
    except ValidationError as error:
        problems = [_explain(kind, tree, problem) for problem in error.errors()]
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise UserError(f"{source}: {count}\n" + "\n".join(f"  {line}" for line in problems)) from None


def parse_architecture(text: str) -> Architecture:
    """A network as a command line has it: ``edsr``, or ``{type: edsr, num_feat: 64}``.

    Raises:
        UserError: there is no such network, or an option of it is wrong.
    """
    try:
        tree = yaml.load(text, Loader=Loader)
    except yaml.YAMLError as error:
        raise UserError(f"--architecture {text}: not valid YAML ({' '.join(str(error).split())}).") from error
    return validate(ArchitectureOptions, {"type": tree} if isinstance(tree, str) else tree, f"--architecture {text}")


def dump_options(options: BaseModel) -> str:
    """The options as YAML; reading it again gives the same options."""
    return yaml.dump(options.model_dump(mode="json"), Dumper=Dumper, sort_keys=False, allow_unicode=True)


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError(f"'{override}' is not an override: write key.path=value, as in train.total_steps=500.")
    try:
        value = yaml.load(text, Loader=Loader)
    except yaml.YAMLError as error:
        raise UserError(f"'{override}': the value is not valid YAML: {' '.join(str(error).split())}") from error
    *parents, last = key.split(".")
    node: Any = tree
    for depth, part in enumerate(parents):
        node = _step_into(node, part, ".".join(parents[: depth + 1]), override)
    if isinstance(node, list):
        node[_list_index(node, last, key, override)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise UserError(f"'{override}': {'.'.join(parents)} is a plain value, it has no key '{last}'.")


def _step_into(node: Any, part: str, path: str, override: str) -> Any:
    if isinstance(node, list):
        return node[_list_index(node, part, path, override)]
    if isinstance(node, dict):
        if node.get(part) is None:
            node[part] = {}
        return node[part]
    raise UserError(f"'{override}': there is no '{path}' to set something in.")


def _list_index(node: list[Any], part: str, path: str, override: str) -> int:
    if not part.isdigit() or int(part) >= len(node):
        raise UserError(
            f"'{override}': {path}: a list of {len(node)} is indexed with a number from 0 to {len(node) - 1}."
        )
    return int(part)


def _explain(kind: Any, tree: Any, problem: Any) -> str:
    """One line for one of pydantic's problems."""
    path, classes = _walk(kind, tree, problem["loc"])
    where, value = ".".join(path) or "options", problem["input"]
    code, context = problem["type"], problem.get("ctx", {})
    if code == "extra_forbidden":
        allowed = sorted({name for cls in classes for name in cls.model_fields})
        return f"{where}: unknown key.{did_you_mean(path[-1], allowed)} Allowed: {', '.join(allowed)}."
    if code == "missing":
        described = [cls.model_fields[path[-1]].description for cls in classes if path[-1] in cls.model_fields]
        return f"{where}: missing. {described[0] if described else ''}".rstrip()
    if code in ("unknown_type", "no_mapping"):
        return _unknown(where, value, context["allowed"])
    if code == "literal_error":
        allowed = re.findall(r"'[^']*'|[^\s,]+", context["expected"].replace(" or ", ", "))
        plain = [text.strip("'") for text in allowed]
        return f"{where}: got {value!r}.{did_you_mean(str(value), plain)} Allowed: {', '.join(plain)}."
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if code == "value_error":
        return f"{where}: {message}."
    return f"{where}: got {_short(value)}; expected {message}."


def _unknown(where: str, value: Any, allowed: list[str]) -> str:
    """A value that asks for none of the entries of a registry."""
    listed = f"Allowed: {', '.join(allowed)}."
    if isinstance(value, dict) and "type" not in value:
        return f"{where}.type: missing. {listed}"
    if isinstance(value, dict):
        return f"{where}.type: got {value['type']!r}.{did_you_mean(str(value['type']), allowed)} {listed}"
    return f"{where}: got {_short(value)}; expected keys and values with a type.{did_you_mean(str(value), allowed)} {listed}"


def _short(value: Any) -> str:
    text = f"{value!r} ({type(value).__name__})" if isinstance(value, (str, bool)) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _walk(kind: Any, tree: Any, location: Sequence[int | str]) -> tuple[list[str], list[type[BaseModel]]]:
    """Follow pydantic's location through the options classes and the values that were given.

    Returns the key path as the user wrote it and the classes in which the last key was looked up.
    """
    annotations: list[Any] = [kind]
    classes, value, path, owners = _models(kind, tree), tree, [], []
    for part in location:
        if isinstance(part, str) and part.startswith("|"):  # the tag of a branch that has no name in the file
            continue
        path.append(str(part))
        with contextlib.suppress(KeyError, IndexError, TypeError):
            value = value[part]
        if isinstance(part, str):
            owners = classes
            fields = [cls.model_fields[part] for cls in classes if part in cls.model_fields]
            annotations = [
                annotation
                for field in fields
                for annotation in [one for one in field.metadata if isinstance(one, OneOf)] or [field.annotation]
            ]
        classes = [cls for annotation in annotations for cls in _models(annotation, value)]
    return path, owners


def _models(annotation: Any, value: Any) -> list[type[BaseModel]]:
    """The options classes inside an annotation: of a union, a list, an optional; of a registry the one that a value asks for."""
    if isinstance(annotation, OneOf):
        chosen = annotation.class_of(value)
        return [] if chosen is None else [chosen]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        chosen = [entry for entry in metadata if isinstance(entry, OneOf)]
        return _models(chosen[0] if chosen else inner, value)
    if get_origin(annotation) in (Union, types.UnionType, list, dict):
        return [cls for inner in get_args(annotation) for cls in _models(inner, value)]
    return []
