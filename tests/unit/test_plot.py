"""The plot of the HTML report: round ticks, and labels that touch nothing."""

from __future__ import annotations

import itertools
import math
import re
from xml.etree import ElementTree

import pytest

from sr_distill.evaluate.plot import Mark, crosses, linear_ticks, log_ticks, overlap, place, scatter

WIDE, NARROW = (960, 420), (360, 340)


def _is_round(value):
    mantissa = abs(value) / 10 ** math.floor(math.log10(abs(value)))
    return any(math.isclose(mantissa, factor) for factor in (1, 2, 5, 10))


@pytest.mark.parametrize(
    ("low", "high"), [(28.43, 32.24), (0.8113, 0.8953), (31.2, 31.2), (-3, 0), (0.0, 0.0), (5, 5000)]
)
@pytest.mark.parametrize("most", [5, 8])
def test_linear_ticks_are_round_and_enclose(low, high, most):
    ticks = linear_ticks(low, high, most)
    steps = [after - before for before, after in itertools.pairwise(ticks)]
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= most + 2
    assert _is_round(steps[0])
    assert steps == pytest.approx([steps[0]] * len(steps))
    assert all(abs(tick / steps[0] - round(tick / steps[0])) < 1e-6 for tick in ticks)


def test_logarithmic_ticks():
    assert log_ticks(29_800, 715_000, 13) == [20e3, 50e3, 100e3, 200e3, 500e3, 1e6]
    assert log_ticks(29_800, 715_000, 5) == [10e3, 100e3, 1e6]
    assert log_ticks(10, 10, 5) == [10]
    for low, high in ((0.03, 0.031), (9.99, 10.01), (1, 1e9), (3e5, 7e12)):
        ticks = log_ticks(low, high, 9)
        assert ticks[0] <= low < high <= ticks[-1]
        assert all(map(_is_round, ticks))


def _marks(places, name="student_{}"):
    return [
        Mark(name.format(k), x, y, "", "front" if k % 2 else "teacher", bool(k % 2)) for k, (x, y) in enumerate(places)
    ]


CLOSE = [(100 * 1.004**k, 31 + 0.02 * math.sin(5 * k)) for k in range(8)]
CASES = {
    "one": (_marks([(700, 31.2)]), ("bicubic 28.4 dB", 28.4)),
    "close": (_marks(CLOSE), ("bicubic 28.4 dB", 28.4)),
    "close to bicubic": (_marks(CLOSE), ("bicubic 31.0 dB", 31.0)),
    "at one place": (_marks([(100, 31.0)] * 8), None),
    "long names": (_marks(CLOSE, "experiments/a_folder_with_a_long_name/of_student_{}"), ("bicubic", 28.4)),
    "at the borders": (_marks([(10, 30), (1000, 30), (10, 35), (1000, 35)], "a_rather_long_name_{}"), ("bicubic", 30)),
    "wide letters": (_marks([(10 * 1.2**k, 30 + 0.1 * k) for k in range(6)], "超解像モデル{}"), ("bicubic", 29)),
}


def _segments(svg):
    """The lines of a drawing: front, bicubic, and those that lead to labels."""
    for line in svg.iter("polyline"):
        points = [tuple(map(float, pair.split(","))) for pair in line.get("points").split()]
        yield from itertools.pairwise(points)
    for path in svg.iter("path"):
        numbers = list(map(float, re.findall(r"-?\d+(?:\.\d+)?", path.get("d"))))
        if path.get("class") == "leader":
            yield tuple(numbers[:2]), tuple(numbers[2:])
        elif path.get("class") == "baseline":
            yield (numbers[0], numbers[1]), (numbers[2], numbers[1])


@pytest.mark.parametrize("size", [WIDE, NARROW])
@pytest.mark.parametrize("case", CASES)
def test_labels_touch_neither_each_other_nor_a_line(case, size):
    marks, baseline = CASES[case]
    plot = scatter(marks, baseline, size, "{:g}".format, "about")
    svg = ElementTree.fromstring(plot.svg)
    air = 0.1  # as a drawing is rounded to
    boxes = [
        (left + air, top + air, right - air, bottom - air) for left, top, right, bottom in (x.box for x in plot.labels)
    ]
    fixed = [plot.labels[0].text] if baseline else []
    assert not baseline or baseline[0].startswith(fixed[0])
    names = [str(k + 1) for k in range(len(marks))] if plot.numbered else [mark.name for mark in marks]
    assert sorted(label.text for label in plot.labels) == sorted([*names, *fixed])
    assert not any(overlap(a, b) for a, b in itertools.combinations(boxes, 2))
    lines = list(_segments(svg))
    assert len(lines) >= (baseline is not None)
    assert not [label.text for label, box in zip(plot.labels, boxes) if any(crosses(line, box) for line in lines)]
    assert all(0 <= box[0] and 0 <= box[1] and box[2] <= size[0] and box[3] <= size[1] for box in boxes)
    drawn = [text for text in svg.iter("text") if text.get("class") == "label"]
    assert [text.text for text in drawn] == [label.text for label in plot.labels]


def test_names_stand_in_the_plot_where_they_fit():
    marks = _marks([(50, 31.2), (400, 31.4), (900, 32.2)])
    assert not scatter(marks, None, WIDE, "{:g}".format, "").numbered
    assert not scatter(marks, None, NARROW, "{:g}".format, "").numbered
    assert scatter(CASES["long names"][0], None, NARROW, "{:g}".format, "").numbered


def test_what_finds_no_room_is_left_out():
    labels = place(["a", "b"], [(10, 10), (11, 10)], [], [], (0, 0, 40, 22))
    assert len(labels) == 1


def test_a_segment_and_a_box():
    box = (10.0, 10.0, 20.0, 20.0)
    assert crosses(((0, 15), (30, 15)), box)
    assert crosses(((0, 0), (30, 30)), box)
    assert crosses(((15, 12), (16, 13)), box)
    assert not crosses(((0, 5), (30, 5)), box)
    assert not crosses(((0, 0), (9, 9)), box)
    assert not crosses(((0, 25), (15, 40)), box)
    assert not crosses(((10, 0), (10, 30)), box)
