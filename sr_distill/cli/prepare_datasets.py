"""Check benchmark sets, make their LR images, convert other layouts."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..console import progress_bar
from ..errors import UserError, did_you_mean
from ..evaluate.known import known_sets
from ..evaluate.prepare import Findings, check_set, convert_selfexsr, prepare_set
from ..evaluate.sets import is_selfexsr
from ..files import DATA_ROOT_VARIABLE, data_root
from .common import run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """``prepare_datasets.py [SET ...] [--data-root DIR] [--from FOLDER] [--scales 2 3 4]``."""
    parser = argparse.ArgumentParser(
        prog="prepare_datasets",
        description="For benchmark sets below DIR/benchmarks: make the LR images that are missing (MATLAB's bicubic, to the bit), compare "
        "those that are there, check the number of images, their pixels and the bicubic row against what is known. A set in the "
        "layout of SelfExSR (image_SRF_4/img_001_SRF_4_HR.png) is converted.",
    )
    parser.add_argument(
        "sets", nargs="*", metavar="SET", help="Set5, Set14, ... (default: every known set and what lies there)"
    )
    parser.add_argument(
        "--data-root", type=Path, metavar="DIR", help="folder with benchmarks/ (default: $SR_DISTILL_DATA)"
    )
    parser.add_argument(
        "--from", dest="source", type=Path, metavar="FOLDER", help="where the one SET lies in SelfExSR's layout"
    )
    parser.add_argument("--scales", type=int, nargs="+", choices=(2, 3, 4), default=(2, 3, 4), metavar="S")
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args(arguments)
    root = args.data_root or data_root()
    if root is None:
        raise UserError(f"say where benchmarks lie: --data-root DIR, or the environment variable {DATA_ROOT_VARIABLE}.")
    if args.source is not None and len(args.sets) != 1:
        raise UserError("--from needs the name of one set.")
    base, wrong, missing = root / "benchmarks", False, []
    for name in args.sets or _all(base):
        source = args.source or base / name
        if not source.is_dir():
            missing.append(name)
            continue
        if args.source is not None and not is_selfexsr(source):
            raise UserError(
                f"--from {source}: there is no image_SRF_4/NAME_SRF_4_HR.png there: put the images into {base / name / 'HR'}."
            )
        for findings in _handle(source, base / name, args.scales, args.check):
            for line in findings.done:
                print(line)
            for line in findings.problems:
                print(f"problem: {line}", file=sys.stderr)
            wrong |= bool(findings.problems)
    for name in missing:
        print(_where(name, base), file=sys.stderr if args.sets else sys.stdout)
    return 1 if wrong or (missing and args.sets) else 0


def _handle(source: Path, target: Path, scales: Sequence[int], check_only: bool) -> Iterator[Findings]:
    """What is done with a set, as it is done; a set that cannot be used does not keep the others from being."""
    try:
        if is_selfexsr(source):
            if check_only:
                unlike = f"{source}: in SelfExSR's layout, which is to be converted (run without --check)."
                yield Findings(problems=[unlike])
                return
            yield convert_selfexsr(source, target)
        if not check_only:
            bar = functools.partial(progress_bar, desc=target.name, unit="image", disable=None, leave=False)
            yield prepare_set(target, scales, bar)
        yield check_set(target, scales)
    except UserError as error:
        yield Findings(problems=[str(error)])


def _all(base: Path) -> list[str]:
    there = sorted(path.name for path in base.iterdir() if path.is_dir()) if base.is_dir() else []
    return list(dict.fromkeys([*known_sets(), *there]))


def _where(name: str, base: Path) -> str:
    known = known_sets().get(name)
    if known is None:
        return f"{name}: not in {base}, and nothing is known of such a set.{did_you_mean(name, known_sets())}"
    return f"{name}: not in {base}. {known.images} images. {known.where}. Put them into {base / name / 'HR'}."


def entry() -> int:
    """Entry point of scripts/prepare_datasets.py."""
    return run_command(main)
