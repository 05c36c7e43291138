"""Bring benchmark sets into the layout that evaluation reads, make their LR images, and check what is there."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..data.bicubic import downscale_to_uint8
from ..data.images import read_rgb, to_pixels, to_tensor, write_png
from ..errors import UserError
from ..models import bicubic_model
from .known import checksum, known_sets, remarks_on
from .protocol import evaluate_set
from .sets import lr_path, named_hr, open_set

_SELFEXSR = re.compile(r"(.+)_SRF_(\d)_HR$")

Progress = Callable[[Iterable], Iterable]


@dataclass
class Findings:
    """What was done with a set, and what is wrong with it, in sentences."""

    done: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def convert_selfexsr(folder: Path, target: Path) -> Findings:
    """Copy the HR images of a set in SelfExSR's layout to ``target/HR/img_001.png``.

    SelfExSR has HR once for each scale, cut to a multiple of it; the largest is taken, from which the others can be cut.

    Raises:
        UserError: a file cannot be written.
    """
    findings, versions = Findings(), {}
    for path in sorted(folder.glob("image_SRF_*/*_HR.png")):
        match = _SELFEXSR.match(path.stem)
        if match:
            versions.setdefault(match[1], []).append(path)
    for name, paths in versions.items():
        try:
            largest = max((read_rgb(path) for path in paths), key=lambda pixels: pixels.size)
            write_png(target / "HR" / f"{name}.png", largest)
        except UserError as error:
            findings.problems.append(str(error))
    findings.done.append(
        f"{folder.name}: {len(versions)} HR images converted from SelfExSR's layout to {target / 'HR'}."
    )
    return findings


def prepare_set(folder: Path, scales: Sequence[int], progress: Progress = iter) -> Findings:
    """Make the LR images of a set that are missing, and check those that are there and the set itself.

    LR is made as MATLAB does (HR cut to a multiple of the scale, ``imresize`` by bicubic, 8 bits), to the bit. Files that are there are
    compared with that, and kept.

    Args:
        folder: the set, with ``HR/`` or the images themselves.
        scales: for which LR is made.
        progress: wraps the loop over images, for a progress bar.

    Raises:
        UserError: a file cannot be written, or there is no image.
    """
    findings = Findings()
    images = named_hr(folder)
    made, kept, other, worst = dict.fromkeys(scales, 0), dict.fromkeys(scales, 0), dict.fromkeys(scales, 0), 0
    for name, path in progress(images.items()):
        try:
            hr = to_tensor(read_rgb(path))
        except UserError as error:
            findings.problems.append(str(error))
            continue
        for scale in scales:
            height, width = (side // scale * scale for side in hr.shape[-2:])
            if min(height, width) < scale:
                findings.problems.append(f"{path}: too small for scale {scale}.")
                continue
            lr, file = downscale_to_uint8(hr[:, :height, :width], scale), lr_path(folder, name, scale)
            if not file.exists():
                write_png(file, to_pixels(lr))
                made[scale] += 1
                continue
            try:
                there = to_tensor(read_rgb(file))
            except UserError as error:
                findings.problems.append(str(error))
                continue
            if there.shape != lr.shape:
                findings.problems.append(
                    f"{file} has {there.shape[-1]}x{there.shape[-2]} pixels, but {path.name} at scale {scale} needs "
                    f"{lr.shape[-1]}x{lr.shape[-2]}."
                )
                continue
            difference = int((there.int() - lr.int()).abs().max())
            kept[scale] += difference == 0
            other[scale] += difference > 0
            worst = max(worst, difference)
    for scale in scales:
        if made[scale]:
            findings.done.append(f"{folder.name} x{scale}: {made[scale]} LR images made.")
        if kept[scale]:
            findings.done.append(f"{folder.name} x{scale}: {kept[scale]} LR images there, equal to MATLAB's bicubic.")
        if other[scale]:
            findings.problems.append(
                f"{folder.name} x{scale}: {other[scale]} LR images there differ from MATLAB's bicubic, by up to {worst} levels; they are kept. "
                f"Delete {lr_path(folder, 'NAME', scale).parent} to have them made anew."
            )
    return findings


def check_set(folder: Path, scales: Sequence[int]) -> Findings:
    """Compare a set with what is known of it: number of images, pixels, bicubic rows.

    Raises:
        UserError: there is no image.
    """
    findings, known = Findings(), known_sets().get(folder.name)
    if known is None:
        findings.done.append(
            f"{folder.name}: nothing is known of a set of this name; known are {', '.join(known_sets())}."
        )
        return findings
    for scale in scales:
        benchmark = open_set(str(folder), scale, None)
        bicubic = evaluate_set(bicubic_model(scale), benchmark, torch.device("cpu"))
        findings.problems += bicubic.problems + remarks_on(benchmark, scale, bicubic)
        mean = bicubic.mean("psnr_y")
        if mean is not None:
            measured = f"bicubic {mean:.2f} dB PSNR-Y on {len(bicubic.scores)} images."
            findings.done.append(f"{folder.name} x{scale}: {measured}")
    if known.pixels:
        found = set()
        for path in named_hr(folder).values():
            with contextlib.suppress(UserError):  # said already
                found.add(checksum(path))
        missing = [name for name, expected in known.pixels.items() if expected not in found]
        if missing:
            findings.problems.append(
                f"{folder.name}: {len(missing)} of {known.images} images do not have the pixels of the common version ({', '.join(missing)})."
            )
        else:
            findings.done.append(f"{folder.name}: all {known.images} images have the pixels of the common version.")
    findings.problems = list(dict.fromkeys(findings.problems))
    return findings
