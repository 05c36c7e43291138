"""The report as one HTML page that needs nothing from outside: tables, crops with a slider, error maps, quality against latency."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..data.images import to_pixels
from ..errors import UserError
from ..files import write_text
from ..models import SRModel, upscale_uint8
from .profile import Profile
from .report import Report, notes_on
from .select import pareto_front
from .sets import BenchmarkImage, BenchmarkSet

CROP = 128  # side of a crop in HR pixels
SAMPLES = 4  # images of each set that are shown
_ERROR_GAIN = 4


@dataclass(frozen=True)
class Sample:
    """One crop as everybody sees it: uint8 (3, CROP, CROP) by name, from LR to HR."""

    title: str
    views: Mapping[str, Tensor]


def write_page(
    folder: Path, report: Report, models: Sequence[SRModel], sets: Sequence[BenchmarkSet], device: torch.device
) -> Path:
    """Write ``report.html`` into ``folder``; returns its path.

    Args:
        models: those of the report; they upscale the images that are shown once more.

    Raises:
        UserError: the file cannot be written.
    """
    samples = [sample for benchmark in sets for sample in _samples(report, benchmark, models, device)]
    path = folder / "report.html"
    write_text(path, as_html(report, samples))
    return path


def as_html(report: Report, samples: Sequence[Sample]) -> str:
    """The whole page."""
    template = Template(files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
    names = dict.fromkeys(result.set for result in report.results)
    notes = notes_on(report.results)
    return template.substitute(
        title=html.escape(f"Super-resolution x{report.scale}: {', '.join(names)}"),
        summary="<h2>Means</h2>"
        + _summary(report)
        + "".join(f'<p class="note">{html.escape(note)}</p>' for note in notes),
        costs=_costs(report),
        plot=_plot(report),
        images="<h2>Crops</h2>\n<p>Move the slider, or drag across the picture; choose what stands on each side.</p>"
        f'<div class="samples">{"".join(_figure(sample) for sample in samples)}</div>'
        if samples
        else "",
        details=f"<details><summary>Every image</summary>{_every_image(report)}</details>",
        protocol="".join(f"<li>{html.escape(line)}</li>" for line in [*report.protocol, *report.remarks]),
    )


@torch.no_grad()
def _samples(report: Report, benchmark: BenchmarkSet, models: Sequence[SRModel], device: torch.device) -> list[Sample]:
    """The images on which bicubic is worst, each at the place where it is."""
    by_name = {image.name: image for image in benchmark.images}
    bicubic = next(r for r in report.results if r.set == benchmark.name and r.model == models[0].spec.name)
    first = report.labels[0]
    worst = sorted(bicubic.scores, key=lambda score: score.values[first])[:SAMPLES]
    return [_sample(by_name[score.image], benchmark.name, report.scale, models, device) for score in worst]


def _sample(
    image: BenchmarkImage, set_name: str, scale: int, models: Sequence[SRModel], device: torch.device
) -> Sample:
    lr, hr = image.load(scale)
    views = {"LR": lr.repeat_interleave(scale, 1).repeat_interleave(scale, 2)}
    for model in models:
        try:
            views[model.spec.name] = upscale_uint8(model.to(device), lr[None], device)[0].cpu()
        except (UserError, RuntimeError):  # the tables say why
            continue
    views["HR"] = hr
    top, left = _where_it_differs(views[models[0].spec.name], hr)
    cut = (slice(None), slice(top, top + CROP), slice(left, left + CROP))
    return Sample(f"{set_name}: {image.name}", {name: view[cut] for name, view in views.items()})


def _where_it_differs(sr: Tensor, hr: Tensor) -> tuple[int, int]:
    """Top left corner of the crop in which the two differ most."""
    size = [min(CROP, side) for side in hr.shape[-2:]]
    error = (sr.float() - hr.float()).abs().mean(0)[None, None]
    step = 8
    means = F.avg_pool2d(error, size, stride=step)[0, 0]
    row, column = divmod(int(means.argmax()), means.shape[1])
    return row * step, column * step


def _figure(sample: Sample) -> str:
    names = list(sample.views)
    chosen = {"left": names[1], "right": names[2] if len(names) > 3 else names[-1]}
    select = {
        side: "".join(
            f"<option{' selected' if name == chosen[side] else ''}>{html.escape(name)}</option>" for name in names
        )
        for side in chosen
    }
    errors = {
        name: _error_map(view, sample.views["HR"]) for name, view in sample.views.items() if name not in ("LR", "HR")
    }
    return f"""
<figure>
<figcaption>{html.escape(sample.title)}</figcaption>
<div class="compare"><img class="left" alt="left"><img class="right" alt="right"><div class="edge"></div></div>
<input type="range" min="0" max="100" value="50" step="0.5" aria-label="where the two sides meet">
<div class="sides"><select class="left" aria-label="left side">{select["left"]}</select>
<select class="right" aria-label="right side">{select["right"]}</select></div>
<div class="strip views">{_strip(sample.views)}</div>
<div class="strip errors" title="difference to HR, {_ERROR_GAIN} times as bright">{_strip(errors)}</div>
</figure>"""


def _strip(views: Mapping[str, Tensor]) -> str:
    return "".join(
        f'<div><img alt="" data-name="{html.escape(name)}" src="{_data_uri(view)}">{html.escape(name)}</div>'
        for name, view in views.items()
    )


def _error_map(view: Tensor, hr: Tensor) -> Tensor:
    """Mean absolute difference over the channels, brightened, from black over red and yellow to white."""
    error = (view.float() - hr.float()).abs().mean(0) / 255 * _ERROR_GAIN
    return torch.stack([(3 * error - k).clamp(0, 1) for k in range(3)]).mul(255).round().to(torch.uint8)


def _data_uri(image: Tensor) -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(to_pixels(image))).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _summary(report: Report) -> str:
    """The means; the best of each set is bold, bicubic and HR aside."""
    better = {metric.label: metric.higher_is_better for metric in report.metrics}
    rows = []
    for result in report.results:
        cells = []
        for label in report.labels:
            value = result.mean(label)
            rivals = [r.mean(label) for r in report.results if r.set == result.set]
            rivals = [rival for rival in rivals if rival is not None]
            best = value is not None and value == (max if better.get(label, True) else min)(rivals)
            cells.append(f"<td{' class=best' if best else ''}>{report.cell(label, value)}</td>")
        rows.append(
            f'<tr><td class="text">{html.escape(result.set)}</td><td class="text">{html.escape(result.model)}</td>'
            f"<td>{len(result.scores)}</td>{''.join(cells)}</tr>"
        )
    return _table(["set", "model", "images", *report.labels], rows)


def _costs(report: Report) -> str:
    if not report.profiles:
        return ""
    rows = [
        f'<tr><td class="text">{html.escape(name)}</td>{"".join(f"<td>{cell}</td>" for cell in profile.cells())}</tr>'
        for name, profile in report.profiles.items()
    ]
    return "<h2>Size and speed</h2>" + _table(["model", *Profile.HEADER], rows)


def _every_image(report: Report) -> str:
    rows = [
        f'<tr><td class="text">{html.escape(result.set)}</td><td class="text">{html.escape(result.model)}</td>'
        f'<td class="text">{html.escape(score.image)}</td>'
        + "".join(f"<td>{report.cell(label, score.values.get(label))}</td>" for label in report.labels)
        + "</tr>"
        for result in report.results
        for score in result.scores
    ]
    return _table(["set", "model", "image", *report.labels], rows)


def _table(header: Sequence[str], rows: Sequence[str]) -> str:
    head = "".join(f"<th{' class=text' if i < 2 else ''}>{html.escape(name)}</th>" for i, name in enumerate(header))
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _plot(report: Report) -> str:
    """Mean of the first metric over the sets against latency on a logarithmic axis; the Pareto front is marked."""
    label, better = report.labels[0], report.metrics[0].higher_is_better
    points = {}
    for name, profile in report.profiles.items():
        means = [r.mean(label) for r in report.results if r.model == name]
        if means and all(mean is not None for mean in means):
            points[name] = (profile.latency_ms, sum(means) / len(means))
    if not points:
        return ""
    front = pareto_front({name: (cost, value if better else -value) for name, (cost, value) in points.items()})
    width, height, left, bottom = 760, 360, 70, 50
    xs = np.log10([cost for cost, _ in points.values()])
    ys = np.array([value for _, value in points.values()])
    low_x, high_x = _padded(xs, 0.2)
    low_y, high_y = _padded(ys, 0.1)
    at = {
        name: (
            left + (np.log10(cost) - low_x) / (high_x - low_x) * (width - left - 20),
            height - bottom - (value - low_y) / (high_y - low_y) * (height - bottom - 20),
        )
        for name, (cost, value) in points.items()
    }
    line = " ".join(f"{at[name][0]:.1f},{at[name][1]:.1f}" for name in front)
    marks = "".join(_mark(name, x, y, points[name], name in front, width) for name, (x, y) in at.items())
    ticks = ""
    for k in range(5):
        y, value = height - bottom - k / 4 * (height - bottom - 20), low_y + k / 4 * (high_y - low_y)
        x, cost = left + k / 4 * (width - left - 20), 10 ** (low_x + k / 4 * (high_x - low_x))
        ticks += f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{value:.2f}</text>'
        ticks += f'<text x="{x:.1f}" y="{height - bottom + 18}" text-anchor="middle">{cost:.3g}</text>'
    return f"""<h2>Quality against latency</h2>
<svg viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="quality against latency">
<path d="M{left} 10V{height - bottom}H{width - 10}" fill="none" stroke="currentColor"/>{ticks}
<polyline class="front" points="{line}"/>{marks}
<text x="{(left + width) / 2}" y="{height - 8}" text-anchor="middle">latency of a 1280x720 output in ms, measured here (logarithmic)</text>
<text x="16" y="{height / 2}" text-anchor="middle" transform="rotate(-90 16 {height / 2})">{html.escape(label)}, mean over the sets</text>
</svg>"""


def _mark(name: str, x: float, y: float, point: tuple[float, float], on_front: bool, width: int) -> str:
    title = html.escape(f"{name}: {point[1]:.3f}, {point[0]:.1f} ms{', on the Pareto front' if on_front else ''}")
    side = f'x="{x - 8:.1f}" text-anchor="end"' if x > 0.75 * width else f'x="{x + 8:.1f}"'
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" class="{"on" if on_front else "off"}-front"><title>{title}</title></circle>'
        f'<text {side} y="{y - 8:.1f}">{html.escape(name)}</text>'
    )


def _padded(values: np.ndarray, least: float) -> tuple[float, float]:
    margin = max(least, 0.1 * float(values.max() - values.min()))
    return float(values.min()) - margin, float(values.max()) + margin
