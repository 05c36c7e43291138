"""Results as a table, JSON and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..files import write_json, write_text
from .protocol import SetResult, describe_protocol, metric_names


def format_table(results: Sequence[SetResult], scale: int, lpips: str | None, per_image: bool = False) -> str:
    """Means of each model on each set, in columns for people; with ``per_image`` also a row for every image."""
    psnr_name, ssim_name, lpips_name = metric_names(scale, lpips or "")
    header = ["set", "model", "image", psnr_name, ssim_name, lpips_name if lpips else "lpips"]
    rows = []
    for result in results:
        if per_image:
            rows += [[result.set, result.model, s.image, *_cells(s.psnr, s.ssim, s.lpips)] for s in result.scores]
        means = (result.mean(metric) for metric in ("psnr", "ssim", "lpips"))
        rows.append([result.set, result.model, f"mean of {len(result.scores)}", *_cells(*means)])
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [_line(header, widths), "  ".join("-" * width for width in widths)]
    for index, row in enumerate(rows):
        if per_image and index and rows[index - 1][:2] != row[:2]:
            lines.append("")
        lines.append(_line(row, widths))
    return "\n".join(lines)


def notes_on(results: Sequence[SetResult]) -> list[str]:
    """Sentences that belong under the table: identical images, and images that could not be measured."""
    notes = []
    for result in results:
        same = [score.image for score in result.scores if math.isinf(score.psnr)]
        if same:
            notes.append(
                f"{result.model} on {result.set}: identical to HR, kept out of the mean PSNR: {', '.join(same)}."
            )
        notes += [f"{result.model} on {result.set}: {problem}" for problem in result.problems]
    return notes


def as_dict(results: Sequence[SetResult], scale: int, lpips: str | None) -> dict[str, Any]:
    """Everything as plain values; an infinite PSNR is the string "inf"."""
    return {
        "scale": scale,
        "protocol": describe_protocol(scale, lpips),
        "results": [
            {
                "model": result.model,
                "set": result.set,
                "mean": _named(scale, lpips, *(result.mean(metric) for metric in ("psnr", "ssim", "lpips"))),
                "images": [{"image": s.image, **_named(scale, lpips, s.psnr, s.ssim, s.lpips)} for s in result.scores],
                "problems": result.problems,
            }
            for result in results
        ],
    }


def write_report(folder: Path, results: Sequence[SetResult], scale: int, lpips: str | None) -> list[Path]:
    """Write ``results.json`` and ``results.csv`` into ``folder``; returns their paths.

    Raises:
        UserError: a file cannot be written.
    """
    tree = as_dict(results, scale, lpips)
    names = list(_named(scale, lpips, None, None, None))
    text = io.StringIO()
    table = csv.DictWriter(text, ["model", "set", "image", *names], lineterminator="\n")
    table.writeheader()
    for result in tree["results"]:
        for row in [*result["images"], {"image": "mean", **result["mean"]}]:
            table.writerow({"model": result["model"], "set": result["set"], **row})
    paths = [folder / "results.json", folder / "results.csv"]
    write_json(paths[0], tree)
    write_text(paths[1], text.getvalue())
    return paths


def _named(
    scale: int, lpips: str | None, psnr: float | None, ssim: float | None, distance: float | None
) -> dict[str, Any]:
    names = metric_names(scale, lpips or "alex")
    values = {names[0]: "inf" if psnr is not None and math.isinf(psnr) else psnr, names[1]: ssim}
    return values | {names[2]: distance} if lpips else values


def _cells(psnr: float | None, ssim: float | None, lpips: float | None) -> list[str]:
    shown = ["inf" if psnr is not None and math.isinf(psnr) else psnr, ssim, lpips]
    formats = ["{:.3f}", "{:.4f}", "{:.4f}"]
    return ["n/a" if v is None else v if isinstance(v, str) else f.format(v) for v, f in zip(shown, formats)]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(c.ljust(w) if i < 3 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths))).rstrip()
