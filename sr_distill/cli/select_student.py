"""The trade-off between quality and cost: which of several students to take."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from ..console import format_columns, progress_bar
from ..devices import pick_device
from ..errors import UserError
from ..evaluate import (
    METRICS,
    RUNTIMES,
    Profile,
    ScaledMetric,
    best_within,
    cost_of,
    evaluate_set,
    make_metric,
    notes_on,
    open_set,
    pareto_front,
    parse_budget,
    profile_model,
)
from ..files import data_root, write_json
from ..models import SRModel
from ..zoo import find_file
from .common import add_architecture, add_device, add_timing, load_models, parse, run_command, split_label


def main(arguments: Sequence[str] | None = None) -> int:
    """``select_student.py --candidates FILE... --budget latency_ms=30 [--datasets Set5 Set14]``."""
    args = parse(_parser(), arguments)
    limits = [parse_budget(text) for text in args.budget]
    budgets = dict(limits)
    if len(budgets) < len(limits):
        raise UserError(f"--budget {' '.join(args.budget)}: each cost has one limit.")
    device, scale = pick_device(args.device), args.scale
    models = load_models(args.candidates, scale, architecture=args.architecture)
    scales = {model.spec.scale for model in models}
    if len(scales) > 1:
        raise UserError(
            f"the candidates have different scales ({', '.join(map(str, sorted(scales)))}): compare those of one."
        )
    metric = make_metric(args.metric, scales.pop())
    quality, problems = _quality(models, args, metric, device)
    profiles = {
        model.spec.name: profile_model(model, device, args.runs, find_file(split_label(name)[1]), args.runtime)
        for model, name in zip(models, args.candidates)
    }
    first = next(iter(budgets), "latency_ms")
    sign = 1 if metric.higher_is_better else -1
    points = {name: (cost_of(profiles[name], first), sign * value) for name, value in quality.items()}
    front = pareto_front(points)
    best = best_within({name: value for name, (_, value) in points.items()}, profiles, budgets)
    print(_table(quality, profiles, metric, front))
    print(f"\nPareto front ({metric.label} against {first}): {', '.join(front)}.")
    within = " and ".join(f"{name} <= {limit:g}" for name, limit in budgets.items()) or "no budget"
    print(f"Best within {within}: {best or 'none of them'}.")
    if args.out is not None:
        models_out = {n: {metric.label: quality[n], **profiles[n].as_dict(), "on_front": n in front} for n in quality}
        write_json(args.out, {"budget": budgets, "best": best, "front": front, "models": models_out})
        print(f"written: {args.out}")
    for note in problems:
        print(note, file=sys.stderr)
    return 1 if problems or best is None else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="select_student",
        description="Measure candidates, print the Pareto front of quality against cost, and name the best one within a budget.",
    )
    parser.add_argument(
        "--candidates", nargs="+", required=True, metavar="M", help="as --model of evaluate; LABEL=M names a row"
    )
    parser.add_argument(
        "--budget",
        nargs="+",
        default=[],
        metavar="NAME=LIMIT",
        help="latency_ms=30, memory_mb=100, parameters=60000, macs=3e9, file_bytes=250000; all must hold. At a 1280x720 output",
    )
    parser.add_argument(
        "--datasets", nargs="+", default=["embedded"], metavar="SET", help="as for evaluate (default: embedded)"
    )
    parser.add_argument("--scale", type=int, choices=(2, 3, 4), help="for files that do not tell their scale")
    parser.add_argument(
        "--metric",
        default="psnr_y",
        metavar="NAME",
        help=f"what is meant by best: {', '.join(METRICS)}, or a plugin's (default: psnr_y)",
    )
    add_timing(parser, RUNTIMES)
    parser.add_argument(
        "--data-root", type=Path, metavar="DIR", help="folder with benchmarks/ (default: $SR_DISTILL_DATA)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write everything as JSON")
    add_architecture(parser)
    add_device(parser)
    return parser


def _quality(
    models: Sequence[SRModel], args: argparse.Namespace, metric: ScaledMetric, device: torch.device
) -> tuple[dict[str, float], list[str]]:
    """The mean of the metric over the images of all sets, and sentences about images that could not be measured."""
    scale = models[0].spec.scale
    sets = [open_set(name, scale, args.data_root or data_root()) for name in args.datasets]
    quality, problems = {}, []
    with progress_bar(total=len(models), unit="model", disable=None, leave=False) as bar:
        for model in models:
            results = [evaluate_set(model, benchmark, device, [metric]) for benchmark in sets]
            values = [score.values[metric.label] for result in results for score in result.scores]
            values = [value for value in values if math.isfinite(value)]  # as in evaluate: PSNR of an identical image
            problems += notes_on(results) if any(result.problems for result in results) else []
            if not values:
                raise UserError(f"{model.spec.name}: no image could be measured. " + " ".join(problems[:2]))
            quality[model.spec.name] = sum(values) / len(values)
            bar.update()
    return quality, problems


def _table(quality: dict[str, float], profiles: dict[str, Profile], metric: ScaledMetric, front: Sequence[str]) -> str:
    rows = [
        [name, "*" if name in front else "", f"{value:.{metric.digits}f}", *profiles[name].cells()]
        for name, value in quality.items()
    ]
    return format_columns(["model", "front", metric.label, *Profile.HEADER], rows)


def entry() -> int:
    """Entry point of scripts/select_student.py."""
    return run_command(main)
