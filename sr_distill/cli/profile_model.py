"""What networks cost: parameters, multiply-accumulates, activations, memory, time."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..console import format_columns
from ..devices import pick_device
from ..evaluate import RUNTIMES, Profile, profile_model
from ..files import write_json
from ..zoo import find_file
from .common import add_architecture, add_device, add_timing, load_models, parse, run_command, split_label

_RATIOS = ("parameters", "macs", "activations", "peak_memory", "latency_ms")


def main(arguments: Sequence[str] | None = None) -> int:
    """``profile_model.py --model M [M ...] [--teacher M]``."""
    parser = argparse.ArgumentParser(
        prog="profile_model",
        description="Parameters, multiply-accumulates, activations, memory and latency of networks at a 1280x720 output.",
    )
    parser.add_argument("--model", nargs="+", required=True, metavar="M", help="as for evaluate; LABEL=M names a row")
    parser.add_argument("--teacher", metavar="M", help="also print how many times as large and slow this network is")
    parser.add_argument("--scale", type=int, choices=(2, 3, 4), help="for a file that does not tell its scale")
    add_timing(parser, RUNTIMES)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write everything as JSON")
    add_architecture(parser)
    add_device(parser)
    args = parse(parser, arguments)
    device = pick_device(args.device)
    given = [*args.model, *([args.teacher] if args.teacher else [])]
    profiles: dict[str, Profile] = {}
    for model, name in zip(load_models(given, args.scale, architecture=args.architecture), given):
        profiles[model.spec.name] = profile_model(
            model, device, args.runs, find_file(split_label(name)[1]), args.runtime
        )
    print(format_columns(["model", *Profile.HEADER], [[name, *p.cells()] for name, p in profiles.items()]))
    print(f"\nLatency: median and half the distance of the quartiles of {args.runs} passes.")
    ratios = _ratios(profiles) if args.teacher else {}
    if ratios:
        teacher = list(profiles)[-1]
        print(f"\n{teacher} over each of the others:")
        rows = [[name, *(f"{value:.1f}" for value in row.values())] for name, row in ratios.items()]
        print(format_columns(["model", *_RATIOS], rows))
    if args.out is not None:
        write_json(args.out, {"models": {n: p.as_dict() for n, p in profiles.items()}, "teacher_over": ratios})
        print(f"written: {args.out}")
    return 0


def _ratios(profiles: dict[str, Profile]) -> dict[str, dict[str, float]]:
    """The last one's costs over those of each of the others."""
    *students, teacher = profiles
    return {
        name: {key: getattr(profiles[teacher], key) / max(getattr(profiles[name], key), 1e-9) for key in _RATIOS}
        for name in students
    }


def entry() -> int:
    """Entry point of scripts/profile_model.py."""
    return run_command(main)
