"""List the layers of a network whose feature maps can be compared."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..console import format_columns
from ..features import list_taps
from ..features.pairs import block_chain
from ..models import ARCHITECTURES, build_model
from ..options import ArchitectureOptions, validate
from .common import add_architecture, load_models, parse, run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """``features.py --model M``."""
    parser = argparse.ArgumentParser(
        prog="features", description="List the layers that can be tapped (features.pairs), with channels and size."
    )
    parser.add_argument(
        "--model",
        required=True,
        metavar="M",
        help="of the zoo, our .safetensors, a published checkpoint, or a type (mobile_sr)",
    )
    parser.add_argument(
        "--scale", type=int, choices=(2, 3, 4), default=None, help="for a type (default 4), or an ambiguous file"
    )
    add_architecture(parser)
    args = parse(parser, arguments)
    if args.model in ARCHITECTURES:
        model = build_model(validate(ArchitectureOptions, {"type": args.model}, "--model"), args.scale or 4)
    else:
        model = load_models([args.model], args.scale, architecture=args.architecture)[0]
    taps = list_taps(model)
    chain = {tap.path for tap in block_chain(taps, model.spec.name)}
    header = ["path", "channels", "size/LR", "layer   (* what pairs: auto chooses from; ^ before an activation)"]
    marks = [" *" * (tap.path in chain) + " ^" * tap.before_activation for tap in taps]
    rows = [[t.path, str(t.channels), f"{t.stride:g}", t.kind + mark] for t, mark in zip(taps, marks)]
    print(format_columns(header, rows, left=(0, 3), rule=False))
    return 0


def entry() -> int:
    """Entry point of scripts/features.py."""
    return run_command(main)
