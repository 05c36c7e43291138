"""Upscale images."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from tqdm import tqdm

from ..api import DEFAULT_MODEL
from ..console import progress_bar
from ..devices import is_out_of_memory, pick_device, process_share
from ..errors import UserError
from ..infer import find_inputs, output_paths, upscale_file
from ..infer.upscale import Tile
from ..zoo import ZOO
from .common import add_architecture, add_device, add_runtime, open_in, parse, run_command

_MANY_TILES = 8


def main(arguments: Sequence[str] | None = None) -> int:
    """``inference.py -i FILE_OR_FOLDER ... -o FOLDER_OR_PNG [--model M] [--device auto]``."""
    parser = argparse.ArgumentParser(prog="inference", description="Upscale images of any size; results are PNG files. Started by "
                                     "torchrun or accelerate launch, the images are shared among the processes.")  # fmt: skip
    parser.add_argument(
        "-i", "--input", type=Path, nargs="+", required=True, metavar="PATH", help="images, or folders of images"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="PATH", help="the folder where results go, or "
                        "for one image the .png")  # fmt: skip
    parser.add_argument("--model", default=DEFAULT_MODEL, metavar="M",
                        help=f"zoo ({', '.join(ZOO)}), our .safetensors, a published checkpoint or an exported model "
                        f"(default: {DEFAULT_MODEL})")  # fmt: skip
    parser.add_argument(
        "--scale", type=int, choices=(2, 3, 4), default=None, help="only for a checkpoint that does not say its scale"
    )
    parser.add_argument(
        "--tile", type=int, default=256, help="side of a tile in input pixels, 0: never cut (default: 256)"
    )
    add_architecture(parser)
    add_runtime(parser)
    add_device(parser)
    args = parse(parser, arguments)
    if args.tile < 0:
        raise UserError(f"--tile {args.tile}: must be 0 or more.")

    device = pick_device(args.device)
    names, notes = find_inputs(args.input)
    model = open_in(args.model, args.scale, args.runtime, args.architecture)
    targets = output_paths(names, args.output, model.spec.scale)
    if len(targets) < len(names):
        notes.append(f"{len(names) - len(targets)} image(s) were made by an earlier run, and are left as they are.")
    failed = 0
    note = functools.cache(lambda text: tqdm.write(f"note: {text}", file=sys.stderr))  # the same text once
    rank, processes = process_share()
    pairs = list(targets.items())[rank::processes]
    for source, target in progress_bar(pairs, unit="image", disable=None if len(pairs) > 1 and rank == 0 else True):
        try:
            tiles = functools.partial(_tile_bar, source.name, rank > 0)
            width, height = upscale_file(model, source, target, device, args.tile, note, tiles)
            tqdm.write(f"{target} ({width}x{height})")
        except UserError as error:
            failed += 1
            tqdm.write(f"error: {error}", file=sys.stderr)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            failed += 1
            tqdm.write(f"error: {source}: not enough memory on {device}; try a smaller --tile.", file=sys.stderr)
    for line in notes if rank == 0 else ():
        print(f"note: {line}", file=sys.stderr)
    if failed:
        print(f"{failed} of {len(pairs)} images could not be upscaled.", file=sys.stderr)
    return 1 if failed else 0


def _tile_bar(name: str, quiet: bool, tiles: Sequence[Tile]) -> Iterable[Tile]:
    """A progress bar for an image that takes a while."""
    few = len(tiles) < _MANY_TILES
    return progress_bar(tiles, desc=name, unit="tile", leave=False, disable=True if quiet or few else None)


def entry() -> int:
    """Entry point of scripts/inference.py."""
    return run_command(main)
