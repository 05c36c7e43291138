"""YAML as of version 1.2, as people read it: PyYAML knows 1.1."""

from __future__ import annotations

import re
from typing import Any

import yaml


class Loader(yaml.SafeLoader):
    """YAML 1.2, and a repeated key is an error instead of a silent choice.

    PyYAML reads YAML 1.1, in which ``1e-4`` is a string, ``010`` is 8, ``1:30`` is 90, and ``on``, ``off``, ``yes`` and ``no`` are booleans.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node; refuses a key that is there twice."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (str, int)) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key}' is given twice", key_node.start_mark
                )
            seen.add(key if isinstance(key, (str, int)) else str(key))
        return super().construct_mapping(node, deep)


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] not in ("bool", "int", "float")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^([-+]?[0-9]+(_[0-9]+)*|0x[0-9a-fA-F]+|0o[0-7]+)$"), list("-+0123456789")
)
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^([-+]?([0-9]+(_[0-9]+)*\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"),
    list("-+.0123456789"),
)


def _number(loader: Loader, node: yaml.ScalarNode) -> int | float:
    """A number with an exponent; ``1e3`` is the integer that it looks like."""
    if re.fullmatch(r"[-+]?\d+[eE]\+?\d{1,2}", node.value):
        digits, exponent = re.split("[eE]", node.value)
        return int(digits) * 10 ** int(exponent)
    return yaml.SafeLoader.construct_yaml_float(loader, node)


Loader.add_constructor("tag:yaml.org,2002:float", _number)
Loader.add_constructor(
    "tag:yaml.org,2002:int", lambda loader, node: int(node.value, 0 if node.value[:2] in ("0x", "0o") else 10)
)


class Dumper(yaml.SafeDumper):
    """Quotes a text that either version of YAML takes for something else."""


for _first, _resolvers in Loader.yaml_implicit_resolvers.items():
    for _tag, _pattern in _resolvers:
        Dumper.add_implicit_resolver(_tag, _pattern, [_first])
