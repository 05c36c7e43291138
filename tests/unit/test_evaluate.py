"""Metrics against BasicSR and scikit-image; sets, tables and files."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from sr_distill.data import downscale_to_uint8, luma
from sr_distill.data.images import read_rgb, to_tensor
from sr_distill.errors import UserError
from sr_distill.evaluate import (
    describe_protocol,
    evaluate_set,
    find_lpips,
    format_table,
    notes_on,
    open_set,
    psnr_y,
    ssim_y,
    write_report,
)
from sr_distill.evaluate.protocol import Score, SetResult
from sr_distill.models import bicubic_model
from sr_distill.models.basicsr import import_basicsr

from ..conftest import natural_image, write_image

CPU = torch.device("cpu")


def _images(height=40, width=52):
    hr = to_tensor(natural_image(height, width))
    noise = torch.randint(-9, 10, hr.shape)
    return (hr.int() + noise).clamp(0, 255).to(torch.uint8)[None], hr[None]


@pytest.mark.parametrize("border", [0, 2, 3, 4])
def test_psnr_and_ssim_equal_basicsr(border):
    metrics = import_basicsr("metrics.psnr_ssim")
    sr, hr = _images()
    # BasicSR takes BGR, as OpenCV reads it.
    arrays = [image[0].permute(1, 2, 0).numpy()[:, :, ::-1] for image in (sr, hr)]
    assert psnr_y(sr, hr, border).item() == pytest.approx(
        metrics.calculate_psnr(*arrays, border, test_y_channel=True), abs=1e-5
    )
    assert ssim_y(sr, hr, border).item() == pytest.approx(
        metrics.calculate_ssim(*arrays, border, test_y_channel=True), abs=1e-7
    )


def test_ssim_equals_scikit_image():
    sr, hr = _images(64, 64)
    x, y = (luma(image[0].double() / 255)[0].numpy() * 255 for image in (sr, hr))
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    _, full = structural_similarity(x, y, full=True, **settings)
    assert ssim_y(sr, hr, 0).item() == pytest.approx(full[5:-5, 5:-5].mean(), abs=1e-10)


def test_metrics_of_a_batch_are_those_of_its_images():
    pairs = [_images(), tuple(reversed(_images()))]
    sr, hr = (torch.cat([pair[i] for pair in pairs]) for i in range(2))
    for metric in (psnr_y, ssim_y):
        torch.testing.assert_close(metric(sr, hr, 4), torch.cat([metric(*pair, 4) for pair in pairs]))


def test_identical_images():
    _, hr = _images()
    assert math.isinf(psnr_y(hr, hr, 4).item())
    assert ssim_y(hr, hr, 4).item() == pytest.approx(1.0)


def test_metrics_refuse_what_cannot_be_compared():
    sr, hr = _images()
    with pytest.raises(ValueError, match="sizes differ"):
        psnr_y(sr[..., 1:], hr, 4)
    with pytest.raises(ValueError, match="nothing inside a border"):
        psnr_y(sr[..., :8], hr[..., :8], 4)
    with pytest.raises(ValueError, match="at least 11x11"):
        ssim_y(sr[..., :16], hr[..., :16], 4)


@pytest.fixture
def root(tmp_path):
    for name, size in (("a", (49, 62)), ("b", (64, 48))):
        hr = natural_image(*size, seed=len(name))
        write_image(tmp_path / f"benchmarks/Mine/HR/{name}.png", hr)
    return tmp_path


def test_lr_is_made_where_it_is_absent(root):
    benchmark = open_set("Mine", 4, root)
    assert [image.name for image in benchmark.images] == ["a", "b"]
    assert benchmark.made_lr == 2
    lr, hr = benchmark.images[0].load(4)
    assert (lr.shape, hr.shape) == ((3, 12, 15), (3, 48, 60))
    assert torch.equal(lr, downscale_to_uint8(hr, 4))


def test_lr_files_are_taken_where_they_are(root):
    lr = natural_image(12, 15, seed=7)
    write_image(root / "benchmarks/Mine/LR_bicubic/X4/ax4.png", lr)
    benchmark = open_set("Mine", 4, root)
    assert benchmark.made_lr == 1
    assert torch.equal(benchmark.images[0].load(4)[0], to_tensor(lr))
    assert open_set("Mine", 2, root).made_lr == 2


def test_any_folder_is_a_set(root):
    assert len(open_set(str(root / "benchmarks/Mine/HR"), 2, None).images) == 2
    assert [image.name for image in open_set("embedded", 4, None).images] == ["chelsea", "coffee", "rocket"]


def test_unknown_sets_are_named_with_those_that_are_there(root):
    with pytest.raises(UserError, match="there is no set 'Set6'.*Sets there: Mine"):
        open_set("Set6", 4, root)
    with pytest.raises(UserError, match="--data-root"):
        open_set("Set5", 4, None)
    (root / "benchmarks/Empty/HR").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no image"):
        open_set("Empty", 4, root)


def test_a_bad_image_is_named_and_the_others_are_measured(root):
    (root / "benchmarks/Mine/HR/c.png").write_text("text")
    write_image(root / "benchmarks/Mine/HR/d.png", natural_image(3, 3))
    write_image(root / "benchmarks/Mine/HR/e.png", natural_image(16, 16))
    write_image(root / "benchmarks/Mine/LR_bicubic/X4/bx4.png", natural_image(5, 5))
    result = evaluate_set(bicubic_model(4), open_set("Mine", 4, root), CPU)
    assert [score.image for score in result.scores] == ["a"]
    assert len(result.problems) == 4
    for problem, name in zip(
        result.problems, ("bx4.png has 5x5", "c.png: cannot be read", "d.png: too small", "e.png: SSIM needs")
    ):
        assert name in problem


def test_bicubic_scores_equal_basicsr(root):
    metrics, resize = import_basicsr("metrics.psnr_ssim"), import_basicsr("utils.matlab_functions").imresize
    benchmark = open_set("Mine", 4, root)
    result = evaluate_set(bicubic_model(4), benchmark, CPU)
    for image, score in zip(benchmark.images, result.scores):
        lr, hr = image.load(4)
        sr = (resize(lr.float() / 255, 4).clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()[:, :, ::-1]
        expected = metrics.calculate_psnr(sr, hr.permute(1, 2, 0).numpy()[:, :, ::-1], 4, test_y_channel=True)
        assert score.psnr == pytest.approx(expected, abs=1e-3)


def test_gray_files_are_converted_like_colour_ones(tmp_path):
    gray = natural_image(40, 40)[:, :, 0]
    write_image(tmp_path / "gray/g.png", gray)
    write_image(tmp_path / "rgb/g.png", np.repeat(gray[:, :, None], 3, 2))
    scores = [
        evaluate_set(bicubic_model(2), open_set(str(tmp_path / kind), 2, None), CPU).scores[0].psnr
        for kind in ("gray", "rgb")
    ]
    assert scores[0] == scores[1]


RESULTS = [
    SetResult("bicubic", "Mine", [Score("a", 30.0, 0.8, 0.3), Score("b", float("inf"), 1.0, 0.0)]),
    SetResult("net", "Mine", [Score("a", 31.0, 0.9, None)], ["b.png: too small."]),
]


def test_mean_is_per_image_and_leaves_identical_images_out():
    assert RESULTS[0].mean("psnr") == 30.0
    assert RESULTS[0].mean("ssim") == 0.9
    assert RESULTS[1].mean("lpips") is None
    notes = notes_on(RESULTS)
    assert "identical to HR" in notes[0]
    assert notes[1] == "net on Mine: b.png: too small."


def test_table_names_the_convention():
    table = format_table(RESULTS, 4, "squeeze", per_image=True)
    assert "psnr_y_b4" in table
    assert "lpips_squeeze" in table
    assert "inf" in table
    assert "n/a" in table
    assert "mean of 2" in table
    assert "n/a" in format_table(RESULTS, 4, None)
    assert "border of 4 pixels" in describe_protocol(4, None)[0]


def test_report_files(tmp_path):
    paths = write_report(tmp_path / "out", RESULTS, 4, "squeeze")
    tree = json.loads(paths[0].read_text())
    assert tree["results"][0]["mean"] == {"psnr_y_b4": 30.0, "ssim_y_b4": 0.9, "lpips_squeeze": 0.15}
    assert tree["results"][0]["images"][1]["psnr_y_b4"] == "inf"
    assert tree["results"][1]["problems"] == ["b.png: too small."]
    rows = list(csv.DictReader(paths[1].open()))
    assert [row["image"] for row in rows] == ["a", "b", "mean", "a", "mean"]
    assert rows[3]["lpips_squeeze"] == ""


def test_lpips_that_cannot_be_had_is_said(no_data):
    network, why = find_lpips("auto")
    assert network is None
    assert "alexnet" in why
    assert "--lpips alex downloads" in why
    assert "no network" in find_lpips("vgg")[1]
    assert find_lpips("none") == (None, None)


def test_held_out_photos_are_photos():
    for image in open_set("embedded", 4, None).images:
        assert read_rgb(image.hr).std() > 20
