"""Models in each runtime and precision: size, how near to PyTorch, PSNR-Y, milliseconds.

benchmark.py export [--models M ...] [--formats F ...] [--precisions P ...] [--threads N ...] -o DIR

Each is exported as export.py does, with its proof, into a folder of DIR (one that is there already is taken as it is), and measured on --sets.
It is timed at an input that gives about a megapixel: 256x256 for x4, 640x360 for x2. A runtime that is not installed is left out with a line.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from sr_distill.cli.common import labels_of, split_label
from sr_distill.errors import UserError
from sr_distill.evaluate import mean_scores
from sr_distill.export import FORMATS, PRECISIONS, Wish, export_model, open_exported, read_card
from sr_distill.files import data_root, write_json
from sr_distill.models import SRModel
from sr_distill.zoo import licence_of, open_model

MODELS = tuple(f"mobile_sr_{size}_x{scale}" for scale in (4, 2) for size in ("tiny", "base", "large"))
RUNTIMES = ("onnx", "openvino", "ncnn", "executorch", "litert")
TIMED_AT = {2: (360, 640), 3: (320, 320), 4: (256, 256)}
"""Height and width of the input by scale."""


def exported(model: SRModel, licence: str | None, kind: str, precision: str, args: argparse.Namespace) -> Path:
    """The folder of an export, made unless it is there.

    Raises:
        UserError: it cannot be made.
    """
    folder = args.output / f"{model.spec.name}_{kind}_{precision}"
    if not folder.exists():
        wish = Wish(
            kind,
            precision,
            size=None if FORMATS[kind].dynamic else TIMED_AT[model.spec.scale],
            time_at=TIMED_AT[model.spec.scale],
            threads=args.threads,
            licence=licence or Wish.licence,
            data_root=data_root(),
        )
        export_model(model, wish, folder, lambda said: print(said, file=sys.stderr))
    return folder


def psnrs(model: SRModel, sets: Sequence[str], kept: Path, told: Mapping[str, float]) -> dict[str, float]:
    """PSNR-Y by set: ``told`` by a card, in the file of what was measured before, or measured now."""
    found = {**told, **(json.loads(kept.read_text()) if kept.exists() else {})}
    missing = [name for name in sets if name not in found]
    if missing:
        means = mean_scores(model, missing, ["psnr_y"], data_root())
        found |= {name: round(scores["psnr_y"], 4) for name, scores in means.items()}
        write_json(kept, found)
    return found


def row(folder: Path, threads: Sequence[int], sets: Sequence[str]) -> list[str]:
    """The cells of an export: kilobytes, dB to PyTorch, PSNR of each set, milliseconds with each number of threads."""
    card = read_card(folder)
    near = card["parity"]["psnr_db"]
    scores = psnrs(open_exported(folder), sets, folder.with_suffix(".json"), card["psnr_y"][card["format"]])
    times = {row["threads"]: row["median_ms"] for row in card["latency"]["passes"]}
    return [
        f"{sum(card['bytes'].values()) / 1e3:.0f}",
        "equal" if near is None else f"{near:.1f}",
        *(f"{scores[name]:.3f}" for name in sets),
        *(f"{times[count]:.0f}" if count in times else "-" for count in threads),
    ]


def table(model: SRModel, licence: str | None, args: argparse.Namespace) -> None:
    """Export what is not there of a model, and print its table as Markdown."""
    height, width = TIMED_AT[model.spec.scale]
    titles = ["kB", "dB to PyTorch", *args.sets, *(f"ms, {n} thread{'s' * (n > 1)}" for n in args.threads)]
    print(f"\n`{model.spec.name}`, {width}x{height} to {width * model.spec.scale}x{height * model.spec.scale}\n")
    _print_row(["runtime", "precision", *titles])
    _print_row(["---"] * (2 + len(titles)))
    own = psnrs(model, args.sets, args.output / f"{model.spec.name}_torch.json", {})
    _print_row(["PyTorch", "fp32", "", "", *(f"{own[name]:.3f}" for name in args.sets), *[""] * len(args.threads)])
    for kind, precision in itertools.product(args.formats, args.precisions):
        if precision not in FORMATS[kind].precisions:
            continue
        try:
            folder = exported(model, licence, kind, precision, args)
        except UserError as error:
            print(f"left out: {error}", file=sys.stderr)
        else:
            _print_row([FORMATS[kind].runtime, precision, *row(folder, args.threads, args.sets)])


def _print_row(cells: Sequence[str]) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


def main(arguments: Sequence[str]) -> int:
    """``benchmark.py export``."""
    parser = argparse.ArgumentParser(
        prog="benchmark.py export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="M", help="default: " + ", ".join(MODELS))
    parser.add_argument(
        "--formats", nargs="+", default=RUNTIMES, choices=RUNTIMES, metavar="F", help=", ".join(RUNTIMES)
    )
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS, choices=PRECISIONS, help="default: all")
    parser.add_argument("--sets", nargs="+", default=["Set5", "Set14"], metavar="SET")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], metavar="N")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    args = parser.parse_args(arguments)
    for label, given in zip(labels_of(args.models), args.models):
        _, path = split_label(given)
        table(open_model(path).renamed(label), licence_of(path), args)
    return 0
