"""Measure models on benchmark sets."""

from __future__ import annotations

import argparse
import functools
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ..console import progress_bar
from ..devices import gathered, pick_device, process_share
from ..errors import UserError
from ..evaluate import (
    METRICS,
    BenchmarkSet,
    Profile,
    Report,
    ScaledMetric,
    SetResult,
    default_metrics,
    evaluate_set,
    find_lpips,
    format_table,
    make_metric,
    notes_on,
    open_set,
    profile_model,
    remarks_on,
    write_page,
    write_report,
)
from ..files import data_root
from ..models import SRModel, bicubic_model
from ..zoo import find_file
from .common import (
    add_architecture,
    add_device,
    add_runtime,
    labels_of,
    load_models,
    open_in,
    parse,
    run_command,
    split_label,
    those_that_open,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """``evaluate.py --model M [M ...] --datasets Set5 Set14 --scale 4 --data-root DIR``."""
    args = parse(_parser(), arguments)
    if args.out is not None and args.out.exists() and not args.out.is_dir():
        raise UserError(f"--out {args.out} is a file; name a folder.")
    if args.metrics is not None and args.lpips != "auto":
        named = "" if args.lpips == "none" else f"name lpips_{args.lpips} there, and "
        raise UserError(f"--metrics says what is measured: {named}leave out --lpips {args.lpips}.")
    device, (rank, _) = pick_device(args.device), process_share()
    problems: list[str] = []
    root = args.data_root or data_root()
    sets = _told_apart(those_that_open(args.datasets, lambda name: open_set(name, args.scale, root), problems))
    problems += [problem for benchmark in sets if (problem := benchmark.unlike_lr(args.scale))]
    teacher = load_models([args.teacher], args.scale, args.runtime, args.architecture)[0] if args.teacher else None
    opened = those_that_open(
        args.model, lambda n: open_in(split_label(n)[1], args.scale, args.runtime, args.architecture), problems
    )
    labels = labels_of([*opened, *([args.teacher] if args.teacher else [])])
    if "bicubic" in labels:
        raise UserError("bicubic is the name of a row that is always there: give the model another (LABEL=M).")
    students = [model.renamed(label) for model, label in zip(opened.values(), labels)]
    teacher = teacher and teacher.renamed(labels[-1])
    models = [bicubic_model(args.scale), *students]
    metrics, missing = _metrics(args.metrics, args.lpips, args.scale)
    if missing and args.lpips != "auto":  # asked for by name, and not had
        problems.append(missing)
        missing = None
    results = _measure(models, teacher, sets, metrics, device)
    failed = bool(problems) or any(result.problems for result in results)
    if rank > 0:
        return int(failed)
    shown = [*models, *([teacher] if teacher else [])]
    remarks = [*_remarks(sets, args.scale, results), *([missing] if missing else [])]
    profiles = {} if args.out is None or args.no_profile else _profiles(shown[1:], [*opened, args.teacher], device)
    report = Report(args.scale, metrics, results, profiles, remarks, teacher.spec.name if teacher else None)
    print(format_table(report, per_image=not args.brief))
    print()
    for line in [*report.protocol, *remarks]:
        print(line)
    if args.out is not None:
        for path in [*write_report(args.out, report), write_page(args.out, report, shown, sets, device)]:
            print(f"written: {path}")
    for note in [*problems, *notes_on(results)]:
        print(note, file=sys.stderr)
    return int(failed)


def _measure(
    models: Sequence[SRModel],
    teacher: SRModel | None,
    sets: Sequence[BenchmarkSet],
    metrics: Sequence[ScaledMetric],
    device: torch.device,
) -> list[SetResult]:
    """All models, and the teacher behind them, on all sets; this process's share is measured and everybody's is returned."""
    share, results = process_share(), []
    total = (len(models) + (teacher is not None)) * sum(len(benchmark.images) for benchmark in sets)
    with progress_bar(total=total, unit="image", disable=True if share[0] else None, leave=False) as bar:
        for benchmark in sets:
            outputs: dict[str, Tensor] = {}  # the teacher's, which the others are compared with
            last = []
            if teacher is not None:
                bar.set_description(f"{teacher.spec.name} on {benchmark.name}")
                keep = functools.partial(_keep, outputs, bar)
                last.append(evaluate_set(teacher, benchmark, device, metrics, on_image=keep, share=share))
            for model in models:
                bar.set_description(f"{model.spec.name} on {benchmark.name}")
                count = functools.partial(_keep, None, bar)
                measured = evaluate_set(model, benchmark, device, metrics, outputs, count, share, luma_output=True)
                results.append(_gathered(measured, benchmark))
            results += [_gathered(measured, benchmark) for measured in last]
    return results


def _keep(outputs: dict[str, Tensor] | None, bar: tqdm, name: str, sr: Tensor | None) -> None:
    bar.update()
    if outputs is not None and sr is not None:
        outputs[name] = sr


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="evaluate",
        description="PSNR, SSIM and LPIPS by the protocol of the papers, beside bicubic upscaling. Started by torchrun or accelerate "
        "launch, the images are shared among the processes.",
    )
    model_help = "name of the zoo, our .safetensors, a published checkpoint, or an exported model; LABEL=M to choose the name in the table"
    parser.add_argument("--model", nargs="+", default=[], metavar="M", help=model_help)
    parser.add_argument(
        "--teacher",
        metavar="M",
        help="measure this model, too, and how near the others' outputs are to its own (PSNR-Y)",
    )
    parser.add_argument(
        "--datasets", nargs="+", required=True, metavar="SET", help="Set5, Set14, ..., a folder, or 'embedded'"
    )
    parser.add_argument("--scale", type=int, choices=(2, 3, 4), required=True)
    parser.add_argument(
        "--data-root", type=Path, metavar="DIR", help="folder with benchmarks/ (default: $SR_DISTILL_DATA)"
    )
    parser.add_argument(
        "--metrics",
        nargs="+",
        metavar="NAME",
        help=f"instead of psnr_y, ssim_y and LPIPS: {', '.join(METRICS)}, or a plugin's",
    )
    parser.add_argument(
        "--lpips",
        choices=("auto", "alex", "vgg", "squeeze", "none"),
        default="auto",
        help="backbone of LPIPS; auto: the first of alex, squeeze, vgg whose weights are on this machine",
    )
    parser.add_argument("--brief", action="store_true", help="print the means only, not a row for every image")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write results.json, .csv, .md and the page report.html there"
    )
    parser.add_argument(
        "--no-profile", action="store_true", help="leave MACs and latency out of the report (they take a few passes)"
    )
    add_architecture(parser)
    add_runtime(parser)
    add_device(parser)
    return parser


def _metrics(names: Sequence[str] | None, lpips: str, scale: int) -> tuple[list[ScaledMetric], str | None]:
    """The metrics to measure, and a sentence about LPIPS if it cannot be."""
    if names is not None:
        return [make_metric(name, scale) for name in dict.fromkeys(names)], None
    backbone, missing = find_lpips(lpips)
    return default_metrics(scale, backbone), missing


def _gathered(result: SetResult, benchmark: BenchmarkSet) -> SetResult:
    """The scores of all processes, in the order of the set."""
    order = {image.name: index for index, image in enumerate(benchmark.images)}
    scores = sorted(gathered(result.scores), key=lambda score: order[score.image])
    return SetResult(result.model, result.set, scores, sorted(gathered(result.problems)))


def _remarks(sets: Sequence[BenchmarkSet], scale: int, results: Sequence[SetResult]) -> list[str]:
    remarks = []
    for benchmark in sets:
        remarks += benchmark.notes
        bicubic = next(r for r in results if r.set == benchmark.name and r.model == "bicubic")
        remarks += remarks_on(benchmark, scale, bicubic)
        if benchmark.made_lr:
            remarks.append(f"{benchmark.name}: LR made here for {benchmark.made_lr} of {len(benchmark.images)} images.")
    return remarks


def _told_apart(sets: Mapping[str, BenchmarkSet]) -> list[BenchmarkSet]:
    """Sets by what the user calls them; those of one name have the whole of that for a name."""
    counts = Counter(each.name for each in sets.values())
    return [replace(each, name=given) if counts[each.name] > 1 else each for given, each in sets.items()]


def _profiles(models: Sequence[SRModel], given: Sequence[str], device: torch.device) -> dict[str, Profile]:
    """Sizes and speeds by name; ``given`` is what the user calls the models."""
    profiles = {}
    with progress_bar(total=len(models), unit="model", desc="size and speed", disable=None, leave=False) as bar:
        for model, name in zip(models, given):
            profiles[model.spec.name] = profile_model(model, device, runs=3, file=find_file(split_label(name)[1]))
            bar.update()
    return profiles


def entry() -> int:
    """Entry point of scripts/evaluate.py."""
    return run_command(main)
