"""Results as a table for people, Markdown, JSON and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..console import format_columns
from ..files import write_json, write_text
from .metrics import Heading, ScaledMetric
from .profile import Profile
from .protocol import AGREEMENT, EXTRAS, SetResult, describe_protocol


@dataclass(frozen=True)
class Report:
    """Everything that a report shows.

    Attributes:
        scale: upscaling factor.
        metrics: what was measured, in the order of the columns.
        results: one for each model and set.
        profiles: size and speed of the models, by name; may be empty.
        remarks: sentences about the sets.
        teacher: name of the model that the others are compared with, if there is one.
    """

    scale: int
    metrics: Sequence[ScaledMetric]
    results: Sequence[SetResult]
    profiles: Mapping[str, Profile] = field(default_factory=dict)
    remarks: Sequence[str] = ()
    teacher: str | None = None

    @property
    def labels(self) -> list[str]:
        """Labels of the columns: the metrics, and what else was measured on some of the models."""
        measured = {label for result in self.results for score in result.scores for label in score.values}
        return [metric.label for metric in self.metrics] + [label for label in EXTRAS if label in measured]

    @property
    def headings(self) -> dict[str, Heading]:
        """What people call the columns, by label."""
        known = {metric.label: metric.heading for metric in self.metrics}
        return {label: known[label] if label in known else EXTRAS[label].heading for label in self.labels}

    @property
    def sets(self) -> list[str]:
        """Names of the sets."""
        return list(dict.fromkeys(result.set for result in self.results))

    @property
    def students(self) -> list[str]:
        """Names of the models apart from bicubic and the teacher: those that are compared."""
        return [r.model for r in self.results if r.set == self.sets[0] and r.model not in ("bicubic", self.teacher)]

    def quality(self) -> dict[str, float]:
        """Mean of the first metric over the sets, of each model that could be measured on all of them."""
        quality = {}
        for name in dict.fromkeys(result.model for result in self.results):
            means = [result.mean(self.labels[0]) for result in self.results if result.model == name]
            if all(mean is not None and math.isfinite(mean) for mean in means):
                quality[name] = sum(means) / len(means)
        return quality

    @property
    def protocol(self) -> list[str]:
        """How it was measured, in sentences."""
        return describe_protocol(self.scale, self.metrics, [label for label in self.labels if label in EXTRAS])

    def cell(self, label: str, value: float | None) -> str:
        """A value as a table shows it."""
        digits = {metric.label: metric.digits for metric in self.metrics}.get(label, 3)
        return "n/a" if value is None else "inf" if math.isinf(value) else f"{value:.{digits}f}"

    def amount(self, label: str, value: float) -> str:
        """A value with its unit, as a sentence says it."""
        return f"{self.cell(label, value)} {self.headings[label].unit}".strip()


def format_table(report: Report, per_image: bool = False) -> str:
    """Means of each model on each set, in columns for people; with ``per_image`` also a row for every image."""
    rows: list[list[str]] = []
    for row in _rows(report, per_image):
        if per_image and rows and rows[-1][:2] != row[:2]:
            rows.append([])
        rows.append(row)
    return format_columns(["set", "model", "image", *report.labels], rows, left=range(3))


def notes_on(results: Sequence[SetResult]) -> list[str]:
    """Sentences that belong under the table: identical images, and images that could not be measured."""
    notes = []
    for result in results:
        same = [s.image for s in result.scores if any(math.isinf(v) for k, v in s.values.items() if k != AGREEMENT)]
        if same:
            notes.append(
                f"{result.model} on {result.set}: identical to HR, kept out of the mean PSNR: {', '.join(same)}."
            )
        alike = [s.image for s in result.scores if math.isinf(s.values.get(AGREEMENT, 0.0))]
        if alike:
            notes.append(
                f"{result.model} on {result.set}: identical to the teacher's output, kept out of the mean: {', '.join(alike)}."
            )
        notes += [f"{result.model} on {result.set}: {problem}" for problem in result.problems]
    return notes


def as_dict(report: Report) -> dict[str, Any]:
    """Everything as plain values; an infinite PSNR is the string "inf"."""
    return {
        "scale": report.scale,
        "protocol": report.protocol,
        "remarks": list(report.remarks),
        "models": {name: profile.as_dict() for name, profile in report.profiles.items()},
        "results": [
            {
                "model": result.model,
                "set": result.set,
                "mean": {label: _plain(result.mean(label)) for label in report.labels},
                "images": [
                    {"image": s.image, **{label: _plain(s.values.get(label)) for label in report.labels}}
                    for s in result.scores
                ],
                "problems": result.problems,
            }
            for result in report.results
        ],
    }


def as_markdown(report: Report) -> str:
    """The means, the sizes and the protocol as Markdown."""
    parts = [
        f"# Evaluation at x{report.scale}",
        _markdown_table(["set", "model", "images", *report.labels], _rows(report)),
    ]
    if report.profiles:
        rows = [[name, *profile.cells()] for name, profile in report.profiles.items()]
        parts.append(_markdown_table(["model", *Profile.HEADER], rows))
    parts += ["\n".join(f"- {line}" for line in lines) for lines in (report.protocol, report.remarks) if lines]
    notes = notes_on(report.results)
    if notes:
        parts.append("\n".join(f"- {note}" for note in notes))
    return "\n\n".join(parts) + "\n"


def write_report(folder: Path, report: Report) -> list[Path]:
    """Write ``results.json``, ``results.csv`` and ``results.md`` into ``folder``; returns their paths.

    Raises:
        UserError: a file cannot be written.
    """
    tree = as_dict(report)
    text = io.StringIO()
    table = csv.DictWriter(text, ["model", "set", "image", *report.labels], lineterminator="\n")
    table.writeheader()
    for result in tree["results"]:
        for row in [*result["images"], {"image": "mean", **result["mean"]}]:
            table.writerow({"model": result["model"], "set": result["set"], **row})
    paths = [folder / f"results.{kind}" for kind in ("json", "csv", "md")]
    write_json(paths[0], tree)
    write_text(paths[1], text.getvalue())
    write_text(paths[2], as_markdown(report))
    return paths


def _rows(report: Report, per_image: bool = False) -> list[list[str]]:
    rows = []
    for result in report.results:
        for score in result.scores if per_image else ():
            cells = [report.cell(label, score.values.get(label)) for label in report.labels]
            rows.append([result.set, result.model, score.image, *cells])
        means = [report.cell(label, result.mean(label)) for label in report.labels]
        rows.append([result.set, result.model, f"mean of {len(result.scores)}", *means])
    return rows


def _plain(value: float | None) -> float | str | None:
    return "inf" if value is not None and math.isinf(value) else value


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
