"""Upscale images and videos."""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

import torch
from tqdm import tqdm

from ..api import DEFAULT_MODEL
from ..console import progress_bar
from ..devices import keep_freed_memory, pick_device, process_share, together
from ..errors import UserError
from ..export import open_for
from ..infer import (
    FORMATS,
    MOST_MEGAPIXELS,
    TILE,
    Enlarger,
    Job,
    Outcome,
    Upscaler,
    find_inputs,
    jobs_for,
    parse_scale,
    upscale_files,
)
from ..infer.alpha import Alpha
from ..infer.files import STANDARD
from ..infer.upscale import Precision
from ..infer.video import upscale_video
from ..models import SRModel
from ..zoo import ZOO
from .common import add_architecture, add_device, add_runtime, at_least_one, parse, run_command

_BAR = "{desc}{percentage:3.0f}%|{bar}| {n:.1f}/{total:.1f} megapixels [{elapsed}<{remaining}, {rate_fmt}]"


def main(arguments: Sequence[str] | None = None) -> int:
    """``inference.py -i PATH ... -o FOLDER_OR_FILE [--model M] [--scale S] [--format F] ...``."""
    args = parse(_parser(), arguments)
    if args.runtime not in (None, "torch") and args.precision in ("bf16", "fp16"):
        raise UserError(
            f"--runtime {args.runtime} computes in fp32: leave out --precision {args.precision}, or --runtime."
        )
    scale = None if args.scale is None else parse_scale(args.scale)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    device = pick_device(args.device)
    if device.type == "cpu":
        keep_freed_memory()
    sys.setswitchinterval(0.001)  # the network's thread waits less for those that read and write
    names, notes = find_inputs(args.input, args.recursive)
    rank, processes = process_share()
    note = _notes(rank)

    def prepare(model: SRModel) -> Upscaler:
        return Upscaler(model, device, args.tile, args.precision, args.self_ensemble, args.alpha, note)

    upscalers, scale = open_for(args.model, scale, prepare, args.runtime, args.architecture)
    label = f"_{scale.label}" if args.suffix is None else args.suffix
    # one list for all processes: one that came later would leave out, and so shift, what another has made by then
    jobs, more = together(lambda: jobs_for(names, args.output, label, args.format, args.overwrite))[0]
    for line in notes + more:
        note(line)
    enlarger = Enlarger(upscalers, scale, args.seamless, note)
    threads = torch.get_num_threads() if device.type == "cpu" else 2
    return _run(jobs[rank::processes], enlarger, threads, args.max_megapixels, note, quiet=rank > 0)


def _run(
    jobs: Sequence[Job],
    enlarger: Enlarger,
    threads: int,
    most_megapixels: float,
    note: Callable[[str], object],
    quiet: bool,
) -> int:
    images, videos = [job for job in jobs if not job.is_video], [job for job in jobs if job.is_video]
    began, pixels, failures = time.perf_counter(), 0, []
    total = sum(height * width for height, width in (enlarger.size_of(*job.size) for job in images if job.size))
    bar = progress_bar(total=total / 1e6, unit="MP", bar_format=_BAR, disable=True if quiet or not images else None)

    def progress(job: Job, size: int) -> Callable[[float], object]:
        return lambda done: bar.update(done / 1e6)

    def tell(outcome: Outcome) -> None:
        nonlocal pixels
        pixels += outcome.pixels
        if outcome.error is not None:
            failures.append(outcome.error)
            return
        for text in outcome.notes:
            note(f"{outcome.job.source}: {text}")
        height, width = outcome.size
        if outcome.job.target != STANDARD:
            tqdm.write(f"{outcome.job.target} ({width}x{height})")

    with bar:
        for outcome in upscale_files(images, enlarger, threads, most_megapixels, progress):
            tell(outcome)
    for job in videos:
        tell(upscale_video(job, enlarger, note, quiet))
    seconds = time.perf_counter() - began
    if pixels:
        rate = pixels / 1e6 / seconds
        print(
            f"{len(jobs) - len(failures)} done, {pixels / 1e6:.1f} megapixels in {seconds:.1f} s: {rate:.2f} megapixels/s.",
            file=sys.stderr,
        )
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    if failures:
        print(f"{len(failures)} of {len(jobs)} files could not be upscaled.", file=sys.stderr)
    return 1 if failures else 0


def _notes(rank: int) -> Callable[[str], object]:
    """Says the same text once."""
    return functools.cache(lambda text: None if rank else tqdm.write(f"note: {text}", file=sys.stderr))


def _tile(text: str) -> int:
    tile = TILE if text == "auto" else int(text)
    if tile < 0:
        raise argparse.ArgumentTypeError(f"{text}: must be 0 or more, or auto")
    return tile


def _suffix(text: str) -> str:
    if "/" in text or "\0" in text:
        raise argparse.ArgumentTypeError(f"'{text}' is no part of a file's name")
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="inference", description="Upscale images and videos of any size. Started by torchrun or "
                                     "accelerate launch, the files are shared among the processes.")  # fmt: skip
    add = parser.add_argument
    add(
        "-i",
        "--input",
        type=Path,
        nargs="+",
        required=True,
        metavar="PATH",
        help="images, videos, folders of images; - is standard input",
    )
    add("-o", "--output", type=Path, required=True, metavar="PATH",
        help="the folder where results go, or for one input the file; - is standard output")  # fmt: skip
    add("--model", default=DEFAULT_MODEL, metavar="M",
        help=f"zoo ({', '.join(ZOO)}), our .safetensors, a published checkpoint or an exported model (default: {DEFAULT_MODEL})")  # fmt: skip
    add("--scale", metavar="S", help="a factor (2, 1.5, 8) or a size in pixels (1920x1080, 1920x, x1080); what no network makes is made by a "
        "larger one, or by several passes, and shrunk (default: the model's)")  # fmt: skip
    add("--format", choices=[*FORMATS, "same"], help="of the results; same: as each source, where that is written (default: what -o ends "
        "in, else png)")  # fmt: skip
    add(
        "--suffix",
        type=_suffix,
        metavar="TEXT",
        help="what is put behind the names of results (default: the scale, _x4)",
    )
    add("--recursive", action="store_true", help="with the folders below")
    add("--overwrite", action="store_true", help="make again what is there already")
    add("--tile", type=_tile, default=TILE, metavar="N", help=f"side of a tile in input pixels; 0: never cut; auto: {TILE}, and less where "
        "memory forces it (default: auto)")  # fmt: skip
    add(
        "--precision",
        choices=get_args(Precision),
        default="auto",
        help="of the network (default: auto: fp16 on CUDA, else fp32)",
    )
    add(
        "--self-ensemble", action="store_true", help="the mean over 8 flips and turns: a little better, 8 times as long"
    )
    add("--alpha", choices=get_args(Alpha), default="network", help="how transparency is upscaled (default: network)")
    add("--seamless", action="store_true", help="the image is a texture that goes on at its other end")
    add("--max-megapixels", type=float, default=MOST_MEGAPIXELS, metavar="N",
        help=f"larger images are refused (default: {MOST_MEGAPIXELS})")  # fmt: skip
    add("--threads", type=at_least_one, metavar="N", help="of the processor, for the network (default: all)")
    add_architecture(parser)
    add_runtime(parser)
    add_device(parser)
    return parser


def entry() -> int:
    """Entry point of scripts/inference.py."""
    return run_command(main)
