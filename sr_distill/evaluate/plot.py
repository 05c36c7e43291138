"""A scatter plot as SVG: quality against cost, with round ticks and with labels that touch nothing."""

from __future__ import annotations

import itertools
import math
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float]
Segment = tuple[Point, Point]
Box = tuple[float, float, float, float]
"""Left, top, right and bottom."""

FONT = 14  # pixels
_HIGH = 1.3 * FONT  # a line of text
_MARK = 8  # half the side of a mark with some air
_NEAR = (10, 15)  # from a mark to its label
_FAR = (20, 27, 36, 48, 64, 84, 110)  # the same where a line leads there
_SIDES = [(x / 4, y / 4) for x in range(-4, 5) for y in range(-4, 5) if max(abs(x), abs(y)) == 4]
_DIRECTIONS = sorted(_SIDES, key=lambda at: (at[0] % 1 + at[1] % 1 > 0, -at[0], abs(at[1])))
"""From a mark to its label; the eight main ones first, to the right before to the left."""


@dataclass(frozen=True)
class Mark:
    """A model in the plot.

    Attributes:
        name: what its label says.
        tip: what is said of it under the pointer.
        kind: "front", "beaten" or "teacher": its look.
        on_front: whether the line of the Pareto front goes through it.
    """

    name: str
    cost: float
    quality: float
    tip: str
    kind: str
    on_front: bool


@dataclass(frozen=True)
class Label:
    """A label at its place, which end of it the text begins at (text-anchor), and the line to its mark if it is far away."""

    text: str
    box: Box
    anchor: str
    leader: Segment | None = None


@dataclass(frozen=True)
class Plot:
    """A finished plot.

    Attributes:
        svg: the drawing.
        labels: those that found room, the baseline's and the marks'.
        numbered: the marks have their numbers, from 1 on, for labels, as not all names found room.
    """

    svg: str
    labels: list[Label]
    numbered: bool


def linear_ticks(low: float, high: float, most: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten that enclose two numbers, about ``most`` of them at most."""
    span = high - low or abs(high) / 10 or 1.0
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next((factor * power for factor in (1, 2, 5) if factor * power >= span / most), 10 * power)
    first, last = math.floor(low / step), math.ceil(high / step)
    if first == last:
        first, last = first - 1, last + 1
    return [round(k * step, 12) for k in range(first, last + 1)]


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """1, 2 and 5 times powers of ten that enclose two positive numbers; the powers alone where that is more than ``most``."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1,)):
        ticks = [float(f"{factor}e{exponent}") for exponent in exponents for factor in factors]
        first, last = max(t for t in ticks if t <= low), min(t for t in ticks if t >= high)
        ticks = [tick for tick in ticks if first <= tick <= last]
        if len(ticks) <= most:
            break
    return ticks


def text_width(text: str) -> float:
    """About as wide as a text is in any sans serif, rather too wide."""
    return sum(1.1 if unicodedata.east_asian_width(letter) in "WF" else 0.65 for letter in text) * FONT


def scatter(
    marks: Sequence[Mark],
    baseline: tuple[str, float] | None,
    size: tuple[int, int],
    write_cost: Callable[[float], str],
    about: str,
) -> Plot:
    """Draw models by cost (logarithmic) and quality.

    Args:
        marks: one at least, each of a cost above 0.
        baseline: label and quality of a horizontal line; the first word of the label where there is no room for more.
        size: width and height.
        write_cost: writes a tick of the cost.
        about: what is seen, for those who do not see it.
    """
    width, height = size
    costs, heights = [mark.cost for mark in marks], [mark.quality for mark in marks]
    if baseline:
        heights.append(baseline[1])
    air = 0.04 * (max(heights) - min(heights))
    x_ticks = log_ticks(0.9 * min(costs), 1.1 * max(costs), width // 72)
    y_ticks = linear_ticks(min(heights) - air, max(heights) + air, height // 60)
    digits = max(0, -math.floor(math.log10(y_ticks[1] - y_ticks[0]) + 1e-9))
    y_texts = [f"{tick:.{digits}f}" for tick in y_ticks]
    frame = (max(map(text_width, y_texts)) + 14, 12.0, width - 30.0, height - 2.0 * FONT - 4)
    x_at = _scale(x_ticks, frame[0], frame[2], math.log)
    y_at = _scale(y_ticks, frame[3], frame[1])
    points = [(x_at(mark.cost), y_at(mark.quality)) for mark in marks]
    front = sorted(point for mark, point in zip(marks, points) if mark.on_front)
    lines, fixed = list(itertools.pairwise(front)), []
    drawing = _axes(frame, [(x_at(tick), write_cost(tick)) for tick in x_ticks], list(zip(map(y_at, y_ticks), y_texts)))
    if baseline:
        y = y_at(baseline[1])
        fixed = _beside_line(baseline[0], frame, y, points, lines)
        lines.append(((frame[0], y), (frame[2], y)))
        drawing += f'<path class="baseline" d="M{frame[0]:.1f} {y:.1f}H{frame[2]:.1f}"/>'
    area = (frame[0] + 4, 2.0, width - 2.0, frame[3] - 3)
    labels = place([mark.name for mark in marks], points, lines, fixed, area)
    numbered = len(labels) < len(marks)
    if numbered:
        labels = place([str(k) for k in range(1, len(marks) + 1)], points, lines, fixed, area)
    drawing += f'<polyline class="line" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in front)}"/>'
    drawing += "".join(map(_leader, labels))
    drawing += "".join(_mark(*item) for item in sorted(zip(marks, points), key=lambda item: item[0].on_front))
    drawing += "".join(map(_text, [*fixed, *labels]))
    head = f'<svg viewBox="0 0 {width} {height}" font-size="{FONT}" role="img" aria-label="{escape(about)}">'
    return Plot(f"{head}{drawing}</svg>", [*fixed, *labels], numbered)


def place(
    texts: Sequence[str], points: Sequence[Point], lines: Sequence[Segment], fixed: Sequence[Label], area: Box
) -> list[Label]:
    """A label for each point where it touches no other label, no mark and no line; without those that find no room.

    Args:
        lines: that labels keep away from, as they do from the lines to other labels.
        fixed: labels that are there already.
        area: that labels stay within.
    """
    placed: list[Label] = []
    marks = [_around(point) for point in points]
    for text, point in sorted(zip(texts, points), key=lambda item: item[1][1]):
        others = [label.box for label in [*fixed, *placed]]
        segments = [*lines, *(label.leader for label in placed if label.leader)]
        apart = [mark for mark in marks if not overlap(mark, _around(point))]
        for label in _around_mark(text, point):
            if not _is_free(label, [*others, *marks], segments, area):
                continue
            if label.leader and any(crosses(label.leader, box) for box in [*others, *apart]):
                continue
            if label.leader or _gap(point, label.box) <= min(_gap(other, label.box) for other in points):
                placed.append(label)
                break
    return placed


def overlap(a: Box, b: Box) -> bool:
    """Whether two boxes have an area in common."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def crosses(segment: Segment, box: Box) -> bool:
    """Whether a segment goes through a box."""
    enter, leave = 0.0, 1.0
    for axis in (0, 1):
        start, step = segment[0][axis], segment[1][axis] - segment[0][axis]
        if step == 0:
            if not box[axis] < start < box[axis + 2]:
                return False
            continue
        near, far = sorted(((box[axis] - start) / step, (box[axis + 2] - start) / step))
        enter, leave = max(enter, near), min(leave, far)
    return enter < leave


def _scale(
    ticks: Sequence[float], start: float, end: float, curve: Callable[[float], float] = float
) -> Callable[[float], float]:
    """From a value to its place between the first tick and the last one."""
    low, high = curve(ticks[0]), curve(ticks[-1])
    return lambda value: start + (curve(value) - low) / (high - low) * (end - start)


def _is_free(label: Label, boxes: Sequence[Box], lines: Sequence[Segment], area: Box) -> bool:
    left, top, right, bottom = box = label.box
    inside = area[0] <= left and area[1] <= top and right <= area[2] and bottom <= area[3]
    return inside and not any(overlap(box, b) for b in boxes) and not any(crosses(line, box) for line in lines)


def _around_mark(text: str, point: Point) -> Iterator[Label]:
    """Places for a label around a point, the better ones first."""
    half = (text_width(text) / 2 + 2, _HIGH / 2)  # two numbers in a row must not look like one
    for distance in _NEAR + _FAR:
        for direction in _DIRECTIONS:
            x, y = (at + d * (distance + h) for at, d, h in zip(point, direction, half))
            box = (x - half[0], y - half[1], x + half[0], y + half[1])
            anchor = {1: "start", -1: "end"}.get(direction[0], "middle")
            yield Label(text, box, anchor, (point, _nearest(point, box)) if distance in _FAR else None)


def _beside_line(text: str, frame: Box, y: float, points: Sequence[Point], lines: Sequence[Segment]) -> list[Label]:
    """The label of a horizontal line, or its first word, above or below it where nothing is; preferably on the right."""
    marks = [_around(point) for point in points]
    for said in (text, text.split()[0]):
        for left in range(int(frame[2] - text_width(said)), int(frame[0]) + 4, -10):
            for top in (y - _HIGH - 2, y + 2):
                label = Label(said, (left, top, left + text_width(said), top + _HIGH), "end")
                if _is_free(label, marks, lines, frame):
                    return [label]
    return []


def _around(point: Point) -> Box:
    return (point[0] - _MARK, point[1] - _MARK, point[0] + _MARK, point[1] + _MARK)


def _nearest(point: Point, box: Box) -> Point:
    return min(max(point[0], box[0]), box[2]), min(max(point[1], box[1]), box[3])


def _gap(point: Point, box: Box) -> float:
    return math.dist(point, _nearest(point, box))


def _axes(frame: Box, x_ticks: Sequence[tuple[float, str]], y_ticks: Sequence[tuple[float, str]]) -> str:
    left, top, right, bottom = frame
    path, texts = f"M{left:.1f} {top:.1f}V{bottom:.1f}H{right:.1f}", ""
    for x, text in x_ticks:
        path += f"M{x:.1f} {bottom:.1f}v5"
        texts += f'<text x="{x:.1f}" y="{bottom + 22:.1f}" text-anchor="middle">{text}</text>'
    for y, text in y_ticks:
        path += f"M{left:.1f} {y:.1f}h-5"
        texts += f'<text x="{left - 9:.1f}" y="{y + 5:.1f}" text-anchor="end">{text}</text>'
    return f'<path class="axis" d="{path}"/><g class="tick">{texts}</g>'


def _mark(mark: Mark, point: Point) -> str:
    (x, y), r = point, 6
    shape = (
        f"M{x:.1f} {y - 9:.1f}l9 9l-9 9l-9 -9z"
        if mark.kind == "teacher"
        else f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 1 0 .1z"
    )
    return f'<path class="mark {mark.kind}" d="{shape}"><title>{escape(mark.tip)}</title></path>'


def _leader(label: Label) -> str:
    if not label.leader:
        return ""
    (x, y), (to_x, to_y) = label.leader
    return f'<path class="leader" d="M{x:.1f} {y:.1f}L{to_x:.1f} {to_y:.1f}"/>'


def _text(label: Label) -> str:
    left, _, right, bottom = label.box
    x = {"start": left, "middle": (left + right) / 2, "end": right}[label.anchor]
    return f'<text class="label" x="{x:.1f}" y="{bottom - 0.36 * FONT:.1f}" text-anchor="{label.anchor}">{escape(label.text)}</text>'
