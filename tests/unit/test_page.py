"""The HTML report, looked at in a real browser."""

from __future__ import annotations

import json
import re

import pytest

from sr_distill.cli import main
from sr_distill.models import build_model, save_model

from ..conftest import natural_image, small, write_image


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A report of two small models on two images."""
    root = tmp_path_factory.mktemp("page")
    for index in range(2):
        write_image(root / f"Mine <&>/HR/{index}.png", natural_image(150, 170, seed=index))
    for name in ("student", "teacher"):
        save_model(build_model(small("mobile_sr"), 2), root / f"{name}.safetensors")
    models = ["--model", f"small=one={root / 'student.safetensors'}", "--teacher", str(root / "teacher.safetensors")]
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
    assert names == ["LR", "bicubic", "small=one", "teacher", "HR"]
    before = right.get_attribute("src")
    choice.find_elements("css selector", "option")[4].click()
    assert right.get_attribute("src") != before
    figure.find_elements("css selector", ".views img")[2].click()
    assert right.get_attribute("src") == before
    assert len(figure.find_elements("css selector", ".errors img")) == 3
    marks = browser.find_elements("css selector", "svg circle")
    assert len(marks) == 2
    assert any(mark.get_attribute("class") == "on-front" for mark in marks)
    severe = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert not severe
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    urls = [r["request"]["url"] for r in requests if r["documentURL"] == (folder / "report.html").as_uri()]
    assert urls
    assert [url for url in urls if not url.startswith(("file:", "data:"))] == []
