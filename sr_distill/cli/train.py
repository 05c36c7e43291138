"""Train a student."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ..devices import process_share
from ..errors import UserError
from ..options import load_options
from ..train import Interrupted
from ..training import train_run
from .common import run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """``train.py -opt FILE [key.path=value ...] [--resume]``."""
    parser = argparse.ArgumentParser(
        prog="train", description="Train a student; with a teacher in the options, distil it."
    )
    parser.add_argument("-opt", "--options", required=True, metavar="FILE", help="options of the run (YAML)")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="options that differ from the file")
    parser.add_argument("--resume", action="store_true", help="continue the run from its last checkpoint")
    parser.add_argument("--allow-changes", type=_keys, default=[], metavar="KEY,...",
                        help="with --resume: options that may differ from those the run was started with")  # fmt: skip
    args = parser.parse_intermixed_args(arguments)
    options = load_options(args.options, args.overrides)
    if args.allow_changes and not args.resume:
        raise UserError("--allow-changes has no effect without --resume.")
    try:
        return train_run(options, args.resume, args.allow_changes)
    except Interrupted as stopped:
        if process_share()[0] == 0:
            print(stopped, file=sys.stderr)
        return 130


def _keys(text: str) -> list[str]:
    return [key.strip() for key in text.split(",") if key.strip()]


def entry() -> int:
    """Entry point of scripts/train.py."""
    return run_command(main)
