"""Export a model to other runtimes."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..console import format_columns
from ..errors import UserError
from ..export import FORMATS, IOS, PRECISIONS, RUNS, Wish, export_model
from ..files import data_root
from ..zoo import licence_of, open_model
from .common import add_architecture, labels_of, parse, run_command, split_label


def main(arguments: Sequence[str] | None = None) -> int:
    """``export.py --model M --format onnx [ncnn ...] -o DIR``."""
    args = parse(_parser(), arguments)
    if args.calibration is not None and args.precision != "int8":
        raise UserError(
            f"--calibration is for --precision int8, and this is {args.precision}: leave out one of the two."
        )
    name, model = labels_of([args.model])[0], open_model(split_label(args.model)[1], args.scale, args.architecture)
    model = model.renamed(name)
    cards, problems = [], []
    for kind in dict.fromkeys(args.format):
        wish = Wish(
            kind,
            args.precision,
            args.io,
            args.size,
            args.calibration,
            args.time_at,
            args.threads,
            args.licence or licence_of(split_label(args.model)[1]) or Wish.licence,
            args.data_root or data_root(),
        )
        parts = [
            name.replace("/", "_"),
            kind,
            args.precision,
            *([args.io] if args.io != "rgb" else []),
            *([_text(args.size)] if args.size else []),
        ]
        folder = args.output / "_".join(parts)
        try:
            cards.append((folder, export_model(model, wish, folder, lambda text: print(text, file=sys.stderr))))
        except UserError as error:
            problems.append(f"error: {error}")
    if cards:
        print(_table([card for _, card in cards], args.threads))
        for folder, _ in cards:
            print(f"written: {folder}")
    for problem in problems:
        print(problem, file=sys.stderr)
    return (1 if cards else 2) if problems else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="export",
        description="Export a model, in the form that is deployed, to other runtimes; compare it with PyTorch on photographs, measure it, "
        "time it.",
    )
    parser.add_argument("--model", required=True, metavar="M", help="as for evaluate; LABEL=M names the files")
    parser.add_argument("--format", nargs="+", required=True, choices=FORMATS, help=", ".join(FORMATS), metavar="F")
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="fp32", help="default: fp32; int8 is calibrated with photos"
    )
    parser.add_argument(
        "--io",
        choices=IOS,
        default="rgb",
        help="rgb: floats in [0, 1], planes; uint8: bytes, R G B of each pixel; y: luma alone, of networks that upscale it (default: rgb)",
    )
    parser.add_argument(
        "--size",
        type=_size,
        metavar="HxW",
        help="of the images that it takes; dynamic: any (default: any, or 256x256 where a runtime takes one)",
    )
    parser.add_argument(
        "--scale", type=int, choices=(2, 3, 4), help="only for a checkpoint that does not say its scale"
    )
    parser.add_argument(
        "--calibration", type=Path, metavar="DIR", help="photos for int8 (default: those of scikit-image)"
    )
    parser.add_argument(
        "--time-at",
        type=_fixed_size,
        default=(256, 256),
        metavar="HxW",
        help="input at which it is timed (default: 256x256)",
    )
    parser.add_argument(
        "--threads", type=int, nargs="+", default=(1, 2), metavar="N", help="of the timings (default: 1 2)"
    )
    parser.add_argument("--licence", metavar="TEXT", help="of the weights, for card.json")
    parser.add_argument(
        "--data-root", type=Path, metavar="DIR", help="folder with benchmarks/Set5 (default: $SR_DISTILL_DATA)"
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="DIR", help="a folder for each format is made there"
    )
    add_architecture(parser)
    return parser


def _size(text: str) -> tuple[int, int] | None:
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if text == "dynamic":
        return None
    if not found or "0" in found.groups():
        raise argparse.ArgumentTypeError(f"'{text}' is not HEIGHTxWIDTH, such as 256x256, or dynamic")
    return int(found[1]), int(found[2])


def _fixed_size(text: str) -> tuple[int, int]:
    size = _size(text)
    if size is None:
        raise argparse.ArgumentTypeError("it is timed at one size, HEIGHTxWIDTH")
    return size


def _text(size: tuple[int, int]) -> str:
    return "x".join(map(str, size))


def _table(cards: Sequence[dict[str, Any]], threads: Sequence[int]) -> str:
    """A row for each export, and a line about how it was measured."""
    rows = [
        [card["format"], card["precision"], f"{sum(card['bytes'].values()) / 1e3:.0f}", *_proof(card, threads)]
        for card in cards
    ]
    times = [f"ms, {count} thread{'s' * (count > 1)}" for count in threads]
    header = ["format", "precision", "kB", "dB to PyTorch", "at most", "PSNR-Y: PyTorch", "exported", *times]
    lines = [format_columns(header, rows)]
    proved = next((card for card in cards if card["parity"]), None)
    if proved:
        (measured_on,) = proved["psnr_y"]["pytorch"]
        size, passes = proved["latency"]["passes"][0]["size"], proved["latency"]["processor"]
        lines.append(
            f"Compared on {', '.join(proved['parity']['photos'])}; PSNR-Y on {measured_on}; {RUNS} passes at {size} on {passes}, median."
        )
    return "\n\n".join(lines)


def _proof(card: dict[str, Any], threads: Sequence[int]) -> list[str]:
    """The cells of what was measured in the runtime."""
    parity = card["parity"]
    if parity is None:
        return ["not run here", *["-"] * (3 + len(threads))]
    near = "equal" if parity["psnr_db"] is None else f"{parity['psnr_db']:.1f}"
    scores = [f"{value:.3f}" for means in card["psnr_y"].values() for value in means.values()]
    return [
        near,
        f"{parity['max_difference']:.1e}",
        *scores,
        *(f"{row['median_ms']:.1f}" for row in card["latency"]["passes"]),
    ]


def entry() -> int:
    """Entry point of scripts/export.py."""
    return run_command(main)
