"""The HTML report: what it says, and how it looks in a real browser."""

from __future__ import annotations

import itertools
import json
import math
import re
from html.parser import HTMLParser

import pytest

from sr_distill.cli import main
from sr_distill.evaluate import METRICS, Metric, Profile, Report, SetResult, make_metric
from sr_distill.evaluate.metrics import ScaledMetric
from sr_distill.evaluate.page import COSTS, as_html, headline
from sr_distill.evaluate.protocol import AGREEMENT, LUMA_OUTPUT, Score
from sr_distill.models import build_model, save_model

from ..conftest import natural_image, small, write_image


def _report(models, metrics=("psnr_y", "ssim_y"), sets=("Set5",), teacher=None, extras=()):
    """A report of models by name, each with its cost and its values of the metrics; bicubic among them costs nothing."""
    scaled = [make_metric(name, 4) for name in metrics]
    labels = [*(metric.label for metric in scaled), *extras]
    results = [
        SetResult(name, benchmark, [Score(f"image {k}", dict(zip(labels, values))) for k in range(2)])
        for benchmark in sets
        for name, (_, *values) in models.items()
    ]
    profiles = {
        name: Profile(cost * 100, cost * 10**6, 6, 7, cost, 0.5, "cpu") for name, (cost, *_) in models.items() if cost
    }
    return Report(4, scaled, results, profiles, ["Set5: a remark."], teacher)


NETS = {"bicubic": (0, 28.4, 0.81), "small": (30, 31.2, 0.88), "large": (300, 32.0, 0.87), "huge": (3000, 32.2, 0.9)}
CLOSE = {f"student_<{k}>_&_co": (100 + k, 31 + 0.02 * math.sin(5 * k), 0.88) for k in range(8)} | {
    "bicubic": (0, 28.4, 0.8)
}


class _Tree(HTMLParser):
    """Raises where an element is not closed, or closed twice; notes texts by element."""

    def __init__(self, page):
        super().__init__()
        self.open, self.texts, self.attributes = [], [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "input", "wbr"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((tuple(self.open), data))

    def of(self, tag):
        return [text for path, text in self.texts if path and path[-1] == tag]


@pytest.mark.parametrize("models", [NETS, CLOSE, {"bicubic": (0, 28.4, 0.81)}])
def test_the_page_is_well_formed(models):
    tree = _Tree(as_html(_report(models, teacher="huge"), []))
    assert tree.of("h1") == ["Super-resolution x4 on Set5"]
    assert tree.of("h2")[-1] == "How it was measured"
    tables = [attributes for tag, attributes in tree.attributes if tag == "table"]
    heads = [attributes for tag, attributes in tree.attributes if tag == "th"]
    assert len(tables) == (3 if len(models) > 1 else 2)
    assert {head["scope"] for head in heads} == {"col", "row", "rowgroup"}
    assert not [a for tag, a in tree.attributes if tag == "svg" and not (a.get("aria-label") or a.get("aria-hidden"))]


def test_names_are_escaped():
    page = as_html(_report(CLOSE, sets=("A <b>", "C & D")), [])
    assert not re.search(r"_<\d>|<b>|& (D|co)|&_co", page)
    assert "student_0 &lt;" not in page
    assert "A &lt;b&gt;" in page
    assert "C &amp; D" in page


def test_metrics_have_names_for_people_and_the_protocol_the_exact_ones():
    extras = (LUMA_OUTPUT, AGREEMENT)
    report = _report({name: (*values, 1.0, 2.0) for name, values in NETS.items()}, extras=extras)
    tree = _Tree(as_html(report, []))
    heads = [text for path, text in tree.texts if "thead" in path]
    wanted = ["PSNR on luma", "dB, higher is better", "SSIM on luma", "higher is better"]
    wanted += ["PSNR of the luma output", "dB, higher is better", "PSNR to the teacher", "dB, higher is better"]
    assert heads[: 1 + len(wanted)] == ["model", *wanted]
    exact = ["psnr_y_b4", "ssim_y_b4", *extras]
    assert tree.of("code") == exact
    assert not [
        text for path, text in tree.texts if "li" not in path and "script" not in path and any(e in text for e in exact)
    ]
    assert any(text.startswith("PSNR on luma") for text in tree.of("p"))


def test_every_metric_has_a_title_and_a_plugin_without_one_its_label():
    titles = [make_metric(name, 4).heading.title for name in METRICS if name != "lpips"]
    assert len(set(titles)) == len(titles)
    assert not [title for title in titles if "_" in title]
    assert not make_metric("lpips_vgg", 4).heading.higher_is_better
    assert make_metric("lpips_vgg", 4).heading.remark == "lower is better"
    assert ScaledMetric(Metric(type="mine"), 2).heading.title == "mine"


def test_the_headline_compares_the_best_model():
    assert headline(_report(NETS, teacher="huge")) == (
        "large, the best of 2 models, reaches 32.000 dB in PSNR on luma: 3.600 dB better than bicubic and 0.200 dB worse than the "
        "teacher huge, with 10% of its multiply-accumulates."
    )
    one = {"bicubic": (0, 0.2), "net": (3, 0.25)}
    assert headline(_report(one, ["lpips_alex"])) == "net reaches 0.2500 in LPIPS (AlexNet): 0.0500 worse than bicubic."
    assert headline(_report({"bicubic": (0, 28.4, 0.8)})) == ""
    failed = Report(
        4, [make_metric("psnr_y", 4)], [SetResult("bicubic", "Set5"), SetResult("net", "Set5", [], ["no."])]
    )
    assert headline(failed) == ""
    assert "net on Set5: no." in as_html(failed, [])


def test_the_best_model_is_bold_bicubic_and_teacher_aside():
    assert _Tree(as_html(_report(NETS, teacher="huge"), [])).of("strong")[:2] == ["0.8800", "32.000"]
    assert "<strong>3" not in as_html(_report({name: NETS[name] for name in ("bicubic", "small")}), [])


def test_bicubic_and_the_teacher_are_marked_in_the_plots():
    page = as_html(_report(NETS, teacher="huge"), [])
    drawings = re.findall(r'<svg viewBox="0 0 .*?</svg>', page, re.S)
    assert len(drawings) == 2 * len(COSTS)
    for drawing in drawings:
        assert drawing.count('class="mark teacher"') == drawing.count('class="baseline"') == 1
        assert drawing.count('class="mark front"') == 2
        assert ">bicubic 28.400 dB</text>" in drawing
        assert "huge: 32.200 dB" in drawing
    assert re.findall(r"<text[^>]*>(\d+ [KMG])</text>", drawings[4]) == [
        "2 K",
        "5 K",
        "10 K",
        "20 K",
        "50 K",
        "100 K",
        "200 K",
        "500 K",
    ]


def test_models_of_which_something_is_missing_are_left_out_of_the_plot():
    results = {"bicubic": (0, math.inf, 1), "all": (3, 31.0, 0.9), "nan": (4, math.nan, 0.9), "free": (0, 30.0, 0.9)}
    page = as_html(_report(results), [])
    assert page.count("<title>all: 31.000 dB") == 2 * len(COSTS)
    assert "<title>nan" not in page
    assert 'class="baseline"' not in page
    without = Report(4, [make_metric("psnr_y", 4)], _report(NETS).results)
    assert "Quality against cost" not in as_html(without, [])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A report of two small models on two images."""
    root = tmp_path_factory.mktemp("page")
    for index in range(2):
        write_image(root / f"Mine <&>/HR/{index}.png", natural_image(150, 170, seed=index))
    for name in ("student", "teacher"):
        save_model(build_model(small("mobile_sr"), 2), root / f"{name}.safetensors")
    models = [
        "--model",
        f"small=<one>&co={root / 'student.safetensors'}",
        "--teacher",
        str(root / "teacher.safetensors"),
    ]
    arguments = [*models, "--datasets", str(root / "Mine <&>"), "--scale", "2", "--out", str(root / "out")]
    assert main(["evaluate", *arguments, "--lpips", "none", "--device", "cpu", "--brief"]) == 0
    return root / "out"


def test_nothing_is_fetched_from_outside(folder):
    page = (folder / "report.html").read_text()
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\(", page.replace("http://www.w3.org/2000/svg", ""))
    sources = re.findall(r'src="([^"]*)"', page)
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "Mine &lt;&amp;&gt;" in page
    assert "Mine <&>" not in page
    assert "small=&lt;one&gt;&amp;co" in page
    assert "<one>" not in page
    _Tree(page)


def test_the_slider_moves_and_nothing_is_broken(folder, browser):
    browser.get((folder / "report.html").as_uri())
    figures = browser.find_elements("css selector", "figure")
    assert len(figures) == 2
    broken = "return [...document.images].filter(i => !i.complete || i.naturalWidth === 0).length"
    assert browser.execute_script(broken) == 0
    figure = figures[0]
    frame, slider = (figure.find_element("css selector", part) for part in (".compare", "input[type=range]"))
    right = frame.find_element("css selector", "img.right")

    def cut():
        return browser.execute_script("return getComputedStyle(arguments[0]).clipPath", right)

    assert "50%" in cut()
    slider.send_keys(*["\ue014"] * 20)  # the right arrow key, half a percent each
    assert "60%" in cut()
    choice = figure.find_element("css selector", "select.right")
    names = [option.text for option in choice.find_elements("css selector", "option")]
    assert names == ["LR", "bicubic", "small=<one>&co", "teacher", "HR"]
    before = right.get_attribute("src")
    choice.find_elements("css selector", "option")[4].click()
    assert right.get_attribute("src") != before
    figure.find_elements("css selector", ".views img")[2].click()
    assert right.get_attribute("src") == before
    assert len(figure.find_elements("css selector", ".errors img")) == 3
    marks = browser.find_elements("css selector", ".by-latency .wide .mark")
    kinds = {mark.get_attribute("class") for mark in marks}
    assert len(marks) == 2
    assert "mark teacher" in kinds
    severe = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert not severe
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    urls = [r["request"]["url"] for r in requests if r["documentURL"] == (folder / "report.html").as_uri()]
    assert urls
    assert [url for url in urls if not url.startswith(("file:", "data:"))] == []


def _open_at(browser, path, width, mode="light"):
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": mode}]}
    )
    browser.get(path.as_uri())


def _luminance(colour):
    channels = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
    return sum(
        w * (c / 12.92 if c < 0.04 else ((c + 0.055) / 1.055) ** 2.4)
        for w, c in zip((0.2126, 0.7152, 0.0722), channels)
    )


def test_nothing_overflows_a_phone_and_labels_stay_apart(folder, browser, tmp_path):
    close = tmp_path / "close.html"
    close.write_text(
        as_html(_report(CLOSE | {"experiments/" + "a_long_name" * 9: (900, 32.0, 0.9)}, sets=["Set5" * 12]), [])
    )
    for page, width in itertools.product((folder / "report.html", close), (320, 390, 1280)):
        _open_at(browser, page, width)
        browser.execute_script("document.querySelector('details').open = true")
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        for by in COSTS:
            browser.execute_script(f"document.querySelector('label[for=by-{by}]').click()")
            boxes = browser.execute_script(
                "return [...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect())"
                ".filter(b => b.width).map(b => [b.left, b.top, b.right, b.bottom])"
            )
            assert len(boxes) > 6
            touching = [(a, b) for a, b in itertools.combinations(boxes, 2) if _overlap(a, b)]
            assert touching == [], (page, width, by)


def _overlap(a, b):
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def test_dark_and_light_can_be_read(folder, browser):
    backgrounds = []
    for mode in ("light", "dark"):
        _open_at(browser, folder / "report.html", 390, mode)
        style = "const s = getComputedStyle(document.querySelector(arguments[0])); return [s.color, s.fill]"
        background = _luminance(browser.execute_script("return getComputedStyle(document.body).backgroundColor"))
        backgrounds.append(background)
        texts = [browser.execute_script(style, part)[0] for part in ("h1", "small", ".quiet", "td", "code")]
        fills = [browser.execute_script(style, part)[1] for part in ("svg .tick text", "svg .label", ".mark.teacher")]
        for shade in map(_luminance, texts + fills):
            low, high = sorted((shade, background))
            assert (high + 0.05) / (low + 0.05) > 4.5
    assert backgrounds[0] > 0.9
    assert backgrounds[1] < 0.1


def test_without_a_script_the_views_are_there(folder, browser):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    _open_at(browser, folder / "report.html", 390)
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert not browser.find_element("css selector", ".compare").is_displayed()
    views = browser.find_elements("css selector", ".views img")
    assert views
    assert all(view.is_displayed() and view.get_attribute("alt") for view in views)
    assert browser.find_element("css selector", ".by-latency .narrow svg").is_displayed()
