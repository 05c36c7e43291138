"""Write an options file to begin with."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError
from ..files import examples, write_text
from .common import run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """``sr-distill init CASE [-o FILE]``."""
    templates = {path.stem: path for path in sorted((examples() / "options/templates").glob("*.yml"))}
    cases = " ".join(f"{name}: {_headline(path)}" for name, path in templates.items())
    parser = argparse.ArgumentParser(
        prog="init", description=f"Write a commented options file to change and to train with. {cases}"
    )
    parser.add_argument("case", choices=list(templates), help="what it is for")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: CASE.yml here")
    args = parser.parse_args(arguments)
    output = args.output or Path(f"{args.case}.yml")
    if output.exists():
        raise UserError(f"{output} is there already: name another file with -o.")
    text = templates[args.case].read_text(encoding="utf-8")
    write_text(output, text.replace("../schema.json", str(examples() / "options/schema.json")))
    print(f"written: {output}\nChange what you like, and then: sr-distill train -opt {output}")
    return 0


def _headline(path: Path) -> str:
    """What a template says in its first line that it is for."""
    return path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")


def entry() -> int:
    """Entry point, for a script."""
    return run_command(main)
