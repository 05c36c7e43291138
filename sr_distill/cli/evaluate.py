"""Measure models on benchmark sets."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..console import progress_bar
from ..devices import pick_device
from ..evaluate import describe_protocol, evaluate_set, find_lpips, format_table, notes_on, open_set, write_report
from ..files import data_root
from ..models import SRModel, bicubic_model
from ..zoo import open_model
from .common import add_device, run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """``evaluate.py --model M [M ...] --datasets Set5 Set14 --scale 4 --data-root DIR``."""
    parser = argparse.ArgumentParser(
        prog="evaluate", description="PSNR-Y, SSIM-Y and LPIPS by the protocol of the papers, beside bicubic upscaling."
    )
    parser.add_argument(
        "--model",
        nargs="+",
        default=[],
        metavar="M",
        help="name of the zoo, our .safetensors, or a published checkpoint; LABEL=M to choose the name in the table",
    )
    parser.add_argument(
        "--datasets", nargs="+", required=True, metavar="SET", help="Set5, Set14, ..., a folder, or 'embedded'"
    )
    parser.add_argument("--scale", type=int, choices=(2, 3, 4), required=True)
    parser.add_argument(
        "--data-root",
        type=Path,
        default=None,
        metavar="DIR",
        help="folder with benchmarks/ (default: $SR_DISTILL_DATA)",
    )
    parser.add_argument("--lpips", choices=("auto", "alex", "vgg", "squeeze", "none"), default="auto", help="backbone of LPIPS; "
                        "auto: the first of alex, squeeze, vgg whose weights are on this machine")  # fmt: skip
    parser.add_argument("--brief", action="store_true", help="print the means only, not a row for every image")
    parser.add_argument(
        "--out", type=Path, default=None, metavar="DIR", help="write results.json and results.csv there"
    )
    add_device(parser)
    args = parser.parse_args(arguments)

    device = pick_device(args.device)
    root = args.data_root or data_root()
    sets = [open_set(name, args.scale, root) for name in args.datasets]
    models = [bicubic_model(args.scale), *load_models(args.model, args.scale)]
    lpips, missing = find_lpips(args.lpips)
    total = len(models) * sum(len(benchmark.images) for benchmark in sets)
    results = []
    with progress_bar(total=total, unit="image", disable=None, leave=False) as bar:
        for benchmark in sets:
            for model in models:
                bar.set_description(f"{model.spec.name} on {benchmark.name}")
                results.append(evaluate_set(model, benchmark, device, lpips, lambda name: bar.update()))

    print(format_table(results, args.scale, lpips, per_image=not args.brief))
    print()
    for line in describe_protocol(args.scale, lpips):
        print(line)
    if missing:
        print(missing)
    for benchmark in sets:
        if benchmark.made_lr:
            print(f"{benchmark.name}: LR made here for {benchmark.made_lr} of {len(benchmark.images)} images.")
    if args.out is not None:
        for path in write_report(args.out, results, args.scale, lpips):
            print(f"written: {path}")
    notes = notes_on(results)
    for note in notes:
        print(note, file=sys.stderr)
    return 1 if any(result.problems for result in results) else 0


def load_models(names: Sequence[str], scale: int) -> list[SRModel]:
    """Load models; each is renamed to what the table calls it: LABEL of ``LABEL=M``, or a short form of M.

    Raises:
        UserError: a model cannot be loaded or is for another scale.
    """
    given = [name.rpartition("=") if "=" in name and not Path(name).exists() else ("", "", name) for name in names]
    labels = [label or _short_name(name) for label, _, name in given]
    clear = [name if labels.count(label) > 1 else label for label, (_, _, name) in zip(labels, given)]
    return [open_model(name, scale).renamed(label) for label, (_, _, name) in zip(clear, given)]


def _short_name(name: str) -> str:
    """The file's name without its ending; the run's name for experiments/<run>/student.safetensors."""
    path = Path(name)
    if path.suffix not in (".safetensors", ".pth", ".pt"):
        return name
    return path.parent.name if path.stem == "student" and path.parent.name else path.stem


def entry() -> int:
    """Entry point of scripts/evaluate.py."""
    return run_command(main)
