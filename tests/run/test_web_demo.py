"""The page in a real browser: its result is PyTorch's, and nothing is fetched from outside."""

from __future__ import annotations

import base64
import io
import json
import shutil
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from sr_distill.cli import main
from sr_distill.cli.web_demo import make_server
from sr_distill.data import imresize
from sr_distill.data.images import read_rgb, to_tensor, to_uint8
from sr_distill.errors import UserError
from sr_distill.export import FORMATS
from sr_distill.export.web_demo import RUNTIME_FILES, write_demo
from sr_distill.models import build_model
from sr_distill.zoo import open_model

from ..conftest import small

pytestmark = pytest.mark.run

STUDENT = "mobile_sr_tiny_x4"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page with one student, served."""
    try:
        FORMATS["onnx"].check_installed()
    except UserError as error:
        pytest.skip(str(error))
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    folder = tmp_path_factory.mktemp("web") / "page"
    try:
        write_demo([open_model(STUDENT)], folder)
    except UserError as error:
        if "npm could not fetch" in str(error):
            pytest.skip(str(error))
        raise
    with make_server(folder, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def _state(browser, wanted="done", seconds=120):
    deadline = time.monotonic() + seconds
    while (state := browser.execute_script("return document.body.dataset.state")) != wanted:
        status = browser.execute_script("return document.getElementById('status').textContent")
        assert state != "failed", status
        assert time.monotonic() < deadline, status
        time.sleep(0.2)


def _canvas(browser, name):
    url = browser.execute_script(f"return document.getElementById('{name}').toDataURL('image/png')")
    return np.array(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGB")).astype(int)


def test_the_sample_comes_out_as_in_pytorch(page, browser):
    folder, address = page
    browser.get(address)
    _state(browser, "ready")
    browser.find_element("id", "sample").click()
    _state(browser)
    lr = to_tensor(read_rgb(folder / "sample.png"))[None]
    with torch.no_grad():
        wanted = {"sr": open_model(STUDENT)(lr.float() / 255), "bicubic": imresize(lr.float() / 255, 4)}
    for name, image in wanted.items():
        difference = np.abs(_canvas(browser, name) - to_uint8(image)[0].permute(1, 2, 0).numpy().astype(int))
        assert difference.shape == (4 * lr.shape[2], 4 * lr.shape[3], 3)  # more than one tile
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.01
    status = browser.find_element("id", "status").text
    assert "megapixels/s" in status
    assert browser.find_element("id", "save").is_enabled()
    browser.execute_script("const s = document.getElementById('slider'); s.value = 20; s.oninput({target: s});")
    assert browser.execute_script("return document.getElementById('stage').style.getPropertyValue('--split')") == "20%"
    fetched = {
        message["params"]["request"]["url"]
        for entry in browser.get_log("performance")
        if (message := json.loads(entry["message"])["message"])["method"] == "Network.requestWillBeSent"
    }
    outside = [url for url in fetched if url.startswith(("http", "ws")) and not url.startswith(address)]
    assert not outside
    errors = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert not errors


def test_what_is_no_image_is_said(page, browser, tmp_path):
    _, address = page
    browser.get(address)
    _state(browser, "ready")
    (tmp_path / "notes.png").write_text("no image")
    browser.find_element("id", "file").send_keys(str(tmp_path / "notes.png"))
    time.sleep(0.5)
    assert "notes.png: not an image that this browser reads" in browser.find_element("id", "status").text
    Image.new("RGB", (40, 3)).save(tmp_path / "thin.png")
    browser.find_element("id", "file").send_keys(str(tmp_path / "thin.png"))
    time.sleep(0.5)
    assert "at least 8 are needed" in browser.find_element("id", "status").text
    Image.new("RGB", (4200, 20)).save(tmp_path / "long.png")
    browser.find_element("id", "file").send_keys(str(tmp_path / "long.png"))
    time.sleep(0.5)
    assert "more than a browser draws" in browser.find_element("id", "status").text


def test_a_photo_of_ones_own_with_transparency(page, browser, tmp_path):
    _, address = page
    pixels = np.random.default_rng(0).integers(0, 255, (33, 150, 4), dtype=np.uint8)
    pixels[..., 3] = np.where(np.arange(150) < 75, 255, 0)
    Image.fromarray(pixels).save(tmp_path / "mine.png")
    browser.get(address)
    _state(browser, "ready")
    browser.find_element("id", "file").send_keys(str(tmp_path / "mine.png"))
    _state(browser)
    on_white = np.where(pixels[..., 3:] > 0, pixels[..., :3], 255).astype(np.uint8)
    with torch.no_grad():
        wanted = (
            to_uint8(open_model(STUDENT)(to_tensor(on_white)[None].float() / 255))[0]
            .permute(1, 2, 0)
            .numpy()
            .astype(int)
        )
    assert np.abs(_canvas(browser, "sr") - wanted).max() <= 1


def test_a_file_says_how_to_serve_it(page, browser):
    folder, _ = page
    browser.get(f"file://{folder}/index.html")
    assert "python3 -m http.server" in browser.find_element("id", "status").text


def test_nothing_is_lost_where_it_cannot_be_written(page, tmp_path, capsys):
    folder, _ = page
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/index.html").write_text("my own page")
    arguments = ["web_demo", "--model", STUDENT, "--runtime-files", str(folder / "ort"), "-o"]
    assert main([*arguments, str(tmp_path / "mine")]) == 2
    assert "was not made by this: remove it" in capsys.readouterr().err
    assert (tmp_path / "mine/index.html").read_text() == "my own page"
    assert main([*arguments, str(tmp_path / "page")]) == 0
    assert main([*arguments, str(tmp_path / "page")]) == 0  # its own is replaced
    assert {path.name for path in (tmp_path / "page/ort").iterdir()} == set(RUNTIME_FILES)
    with pytest.raises(UserError, match=r"ort.wasm.bundle.min.mjs.* missing; .*onnxruntime-web"):
        write_demo([open_model(STUDENT)], tmp_path / "page", tmp_path)
    with pytest.raises(UserError, match="export it for one"):
        write_demo([build_model(small("swinir"), 2)], tmp_path / "page", folder / "ort")
    assert (tmp_path / "page/models" / f"{STUDENT}.onnx").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "page"]
