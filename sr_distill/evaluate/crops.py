"""Crops of a report: where they are cut, and what they look like under a slider and as error maps."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..data.images import to_pixels
from ..errors import UserError
from ..models import SRModel, upscale_uint8
from .report import Report
from .sets import BenchmarkImage, BenchmarkSet

CROP = 128  # side of a crop in HR pixels
SAMPLES = 4  # images of each set that are shown
_ERROR_GAIN = 4


@dataclass(frozen=True)
class Sample:
    """One crop as everybody sees it: uint8 (3, CROP, CROP) by name, from LR to HR."""

    title: str
    views: Mapping[str, Tensor]


@torch.no_grad()
def crops_of(report: Report, benchmark: BenchmarkSet, models: Sequence[SRModel], device: torch.device) -> list[Sample]:
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


def figure(sample: Sample) -> str:
    """A crop as HTML: two sides under a slider, all views, and how far each is from HR."""
    names = list(sample.views)
    chosen = {"left": names[1], "right": names[2] if len(names) > 3 else names[-1]}
    select = {
        side: "".join(f"<option{' selected' if name == chosen[side] else ''}>{escape(name)}</option>" for name in names)
        for side in chosen
    }
    errors = {
        name: _error_map(view, sample.views["HR"]) for name, view in sample.views.items() if name not in ("LR", "HR")
    }
    height, width = sample.views["HR"].shape[-2:]
    return f"""
<figure class="sample">
<figcaption><h3>{escape(sample.title)}</h3></figcaption>
<div class="scripted">
<div class="compare" style="aspect-ratio: {width} / {height}"><img class="left" alt=""><img class="right" alt=""><div class="edge"></div></div>
<input type="range" min="0" max="100" value="50" step="0.5" aria-label="where the two sides meet">
<div class="sides"><select class="left" aria-label="left side">{select["left"]}</select>
<select class="right" aria-label="right side">{select["right"]}</select></div></div>
<div class="strip views">{_strip(sample.views, "crop of {}")}</div>
<p class="quiet">Difference to HR, {_ERROR_GAIN} times as bright:</p>
<div class="strip errors">{_strip(errors, "difference of {} to HR")}</div>
</figure>"""


def breakable(name: str) -> str:
    """A name as HTML that breaks between its parts rather than within one."""
    return escape(name).replace("_", "_<wbr>")


def _strip(views: Mapping[str, Tensor], alt: str) -> str:
    return "".join(
        f'<div><img alt="{escape(alt.format(name))}" data-name="{escape(name)}" src="{_data_uri(view)}">{breakable(name)}</div>'
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
