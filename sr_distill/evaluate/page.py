"""The report as one HTML page that needs nothing from outside: tables, quality against cost, crops."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

import torch

from ..files import write_text
from ..models import SRModel
from .crops import Sample, breakable, crops_of, figure
from .plot import Mark, scatter
from .profile import Profile
from .report import Report, notes_on
from .select import pareto_front
from .sets import BenchmarkSet

_SIZES = {"wide": (960, 420), "narrow": (360, 340)}
"""Width and height of a plot; two of them, as text that shrinks with its picture cannot be read on a phone."""

_KEY = {
    "front": ('<circle cx="8" cy="8" r="6"/>', "on the Pareto front"),
    "beaten": ('<circle cx="8" cy="8" r="5.5"/>', "beaten: another one is at least as good and costs no more"),
    "teacher": ('<path d="M8 0l8 8l-8 8l-8 -8z"/>', "teacher"),
    "baseline": ('<path d="M-1 8h18"/>', "bicubic"),
}

Row = tuple[str, Sequence[str]]
"""What a row of a table is about, and its cells; HTML."""


@dataclass(frozen=True)
class Cost:
    """What quality is drawn against.

    Attributes:
        title: on its button.
        axis: on its axis.
        of: reads it off a profile.
        tick: writes a number of it.
        unit: what is written behind a number in a sentence.
    """

    title: str
    axis: str
    of: Callable[[Profile], float]
    tick: Callable[[float], str]
    unit: str


def counted(value: float) -> str:
    """A large number with the letter of its thousands, as in 100 K or 1.71 G."""
    power = next((power for power in (12, 9, 6, 3) if round(value) >= 10**power), 0)
    return f"{value / 10**power:.3g} {' KMGT'[power // 3]}".strip()


def plain(value: float) -> str:
    """A number without an exponent, as in 0.5 or 2,000."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


COSTS = {
    "latency": Cost(
        "latency", "Latency of a 1280x720 output, measured here, in ms", lambda p: p.latency_ms, plain, "ms"
    ),
    "macs": Cost(
        "multiply-accumulates", "Multiply-accumulates of a 1280x720 output", lambda p: p.macs, counted, "MACs"
    ),
    "parameters": Cost("parameters", "Number of parameters", lambda p: p.parameters, counted, "parameters"),
}


def write_page(
    folder: Path, report: Report, models: Sequence[SRModel], sets: Sequence[BenchmarkSet], device: torch.device
) -> Path:
    """Write ``report.html`` into ``folder``; returns its path.

    Args:
        models: those of the report; they upscale the images that are shown once more.

    Raises:
        UserError: the file cannot be written.
    """
    samples = [sample for benchmark in sets for sample in crops_of(report, benchmark, models, device)]
    path = folder / "report.html"
    write_text(path, as_html(report, samples))
    return path


def as_html(report: Report, samples: Sequence[Sample]) -> str:
    """The whole page."""
    template = Template(files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(f"Super-resolution x{report.scale} on {_listed(report.sets)}"),
        headline=escape(headline(report)),
        means=_means(report),
        notes="".join(f'<p class="note">{escape(note)}</p>' for note in notes_on(report.results)),
        plots=_section("Quality against cost", _plots(report)),
        costs=_section("Size and speed", _costs(report)),
        samples=_section("Crops", _samples(samples)),
        images=_every_image(report),
        protocol="".join(_protocol_line(report, line) for line in [*report.protocol, *report.remarks]),
    )


def headline(report: Report) -> str:
    """The result in a sentence: the best model beside bicubic and the teacher; empty where no model could be measured."""
    label, quality, costs = report.labels[0], report.quality(), report.profiles
    heading = report.headings[label]
    rivals = {name: quality[name] for name in report.students if name in quality}
    if not rivals:
        return ""
    best = next(name for name, value in rivals.items() if value == heading.best(rivals.values()))
    gaps = []
    for name, said in (("bicubic", "bicubic"), (report.teacher, f"the teacher {report.teacher}")):
        if name in quality:
            gap = quality[best] - quality[name]
            word = "better" if (gap >= 0) == heading.higher_is_better else "worse"
            gaps.append(f"{report.amount(label, abs(gap))} {word} than {said}")
    sentence = f"{best}{f', the best of {len(rivals)} models,' if len(rivals) > 1 else ''} reaches "
    sentence += f"{report.amount(label, quality[best])} in {heading.title}{': ' if gaps else ''}{_listed(gaps)}"
    if report.teacher in costs and best in costs and costs[report.teacher].macs:
        sentence += f", with {costs[best].macs / costs[report.teacher].macs:.0%} of its multiply-accumulates"
    return f"{sentence}."


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>" if content else ""


def _means(report: Report) -> str:
    groups = {}
    for name in report.sets:
        results = [result for result in report.results if result.set == name]
        count = max(len(result.scores) for result in results)
        models = [(r.model, {label: r.mean(label) for label in report.labels}) for r in results]
        fewer = {r.model: f"on {len(r.scores)} of them" for r in results if len(r.scores) < count}
        groups[f"{name}: mean of {count} image{'s' if count > 1 else ''}"] = _metric_rows(report, models, fewer)
    bold = '<p class="quiet">Bold: the best, bicubic and the teacher aside.</p>' if len(report.students) > 1 else ""
    return _table("Means", _metric_columns(report), groups) + bold


def _every_image(report: Report) -> str:
    """The models beside each other on each image."""
    images: dict[str, list[tuple[str, Mapping[str, float]]]] = {}
    for result in report.results:
        for score in result.scores:
            images.setdefault(f"{result.set}: {score.image}", []).append((result.model, score.values))
    groups = {name: _metric_rows(report, models) for name, models in images.items()}
    return _table("Every image", _metric_columns(report), groups)


def _metric_columns(report: Report) -> list[str]:
    return [f"{escape(heading.title)}<small>{escape(heading.remark)}</small>" for heading in report.headings.values()]


def _metric_rows(
    report: Report, models: Sequence[tuple[str, Mapping[str, float | None]]], notes: Mapping[str, str] | None = None
) -> list[Row]:
    """A row for each model; where there are rivals, bicubic and the teacher aside, the best of them is bold."""
    headings, students, best = report.headings, report.students, {}
    for label, heading in headings.items():
        rivals = [values[label] for name, values in models if name in students and values.get(label) is not None]
        if len(rivals) > 1:
            best[label] = heading.best(rivals)
    rows = []
    for name, values in models:
        cells = [report.cell(label, values.get(label)) for label in headings]
        for k, label in enumerate(headings):
            if name in students and label in best and values.get(label) == best[label]:
                cells[k] = f"<strong>{cells[k]}</strong>"
        rows.append((_name(report, name, (notes or {}).get(name)), cells))
    return rows


def _costs(report: Report) -> str:
    rows = [(_name(report, name), profile.cells()) for name, profile in report.profiles.items()]
    return _table("Size and speed", Profile.HEADER, {"": rows}) if rows else ""


def _name(report: Report, name: str, note: str | None = None) -> str:
    notes = ["teacher"] * (name == report.teacher) + [note] * (note is not None)
    return breakable(name) + "".join(f"<small>{escape(note)}</small>" for note in notes)


def _table(title: str, columns: Sequence[str], groups: Mapping[str, Sequence[Row]]) -> str:
    """Rows under the names of their groups, in a box of its own that scrolls where the table is too wide."""
    bodies = ""
    for group, rows in groups.items():
        over = f'<tr><th scope="rowgroup" colspan="{len(columns) + 1}"><span>{escape(group)}</span></th></tr>'
        lines = [f'<th scope="row">{name}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}' for name, cells in rows]
        bodies += f"<tbody>{over if group else ''}{''.join(f'<tr>{line}</tr>' for line in lines)}</tbody>"
    head = "".join(f'<th scope="col">{column}</th>' for column in ["model", *columns])
    box = f'<div class="scroll" role="region" tabindex="0" aria-label="{title}">'
    return f"{box}<table><thead><tr>{head}</tr></thead>{bodies}</table></div>"


def _plots(report: Report) -> str:
    """Quality against each cost; buttons that need no script choose which is seen."""
    quality = {name: value for name, value in report.quality().items() if name in report.profiles}
    plots = {}
    for key, cost in COSTS.items():
        points = {name: (cost.of(report.profiles[name]), value) for name, value in quality.items()}
        marks = _marks(report, cost, {name: point for name, point in points.items() if point[0] > 0})
        if marks:
            plots[key] = _plot(report, cost, marks)
    buttons = "".join(
        f'<input type="radio" name="cost" id="by-{key}"{"" if n else " checked"}><label for="by-{key}">{COSTS[key].title}</label>'
        for n, key in enumerate(plots)
    )
    drawings = "".join(f'<div class="plot by-{key}">{plot}</div>' for key, plot in plots.items())
    return f'<div class="plots" role="group" aria-label="What it costs">{buttons}{drawings}</div>' if plots else ""


def _marks(report: Report, cost: Cost, points: Mapping[str, tuple[float, float]]) -> list[Mark]:
    """The models as points of a plot, by rising cost."""
    label = report.labels[0]
    sign = 1 if report.headings[label].higher_is_better else -1
    front = pareto_front({name: (x, sign * y) for name, (x, y) in points.items()})
    marks = []
    for name, (x, y) in sorted(points.items(), key=lambda item: item[1]):
        kind = "teacher" if name == report.teacher else "front" if name in front else "beaten"
        tip = f"{name}: {report.amount(label, y)}, {cost.tick(x)} {cost.unit}"
        marks.append(Mark(name, x, y, tip, kind, name in front))
    return marks


def _plot(report: Report, cost: Cost, marks: Sequence[Mark]) -> str:
    """The plot in both sizes, between the titles of its axes; with a legend where the names do not fit into it."""
    label, bicubic = report.labels[0], report.quality().get("bicubic")
    heading = report.headings[label]
    baseline = None if bicubic is None else (f"bicubic {report.amount(label, bicubic)}", bicubic)
    told = "; ".join([*(mark.tip for mark in marks), *([baseline[0]] if baseline else [])])
    names = "".join(f"<li>{breakable(mark.name)}</li>" for mark in marks)
    drawings, legends = "", ""
    for size, sides in _SIZES.items():
        plot = scatter(marks, baseline, sides, cost.tick, f"{heading.title} against {cost.title}: {told}")
        drawings += f'<div class="{size}">{plot.svg}</div>'
        legends += f'<div class="{size}"><ol>{names}</ol></div>' if plot.numbered else ""
    seen = {mark.kind for mark in marks} | ({"baseline"} if baseline else set())
    key = "".join(
        f'<li><svg class="mark {kind}" viewBox="-1 -1 18 18" aria-hidden="true">{shape}</svg> {said}</li>'
        for kind, (shape, said) in _KEY.items()
        if kind in seen
    )
    over = f"{heading.title}{', mean over ' if len(report.sets) > 1 else ' on '}{_listed(report.sets)}"
    return (
        f'<p class="axis-title">{escape(over)} <span class="quiet">({escape(heading.remark)})</span></p>{drawings}'
        f'<p class="axis-title below">{cost.axis} <span class="quiet">(logarithmic)</span></p>{legends}<ul class="key">{key}</ul>'
    )


def _samples(samples: Sequence[Sample]) -> str:
    if not samples:
        return ""
    advice = "Move the slider, or drag across the picture; choose what stands on each side."
    return f'<p class="scripted">{advice}</p><div class="samples">{"".join(map(figure, samples))}</div>'


def _protocol_line(report: Report, line: str) -> str:
    """A sentence of the protocol; about a metric, it begins with what people call it, before its exact name."""
    label, _, text = line.partition(": ")
    if label not in report.labels:
        return f"<li>{escape(line)}</li>"
    title = report.headings[label].title
    return f"<li><strong>{escape(title)}</strong>, <code>{escape(label)}</code>: {escape(text)}</li>"


def _listed(items: Sequence[str]) -> str:
    """The items as a sentence lists them."""
    return " and ".join(part for part in (", ".join(items[:-1]), *items[-1:]) if part)
