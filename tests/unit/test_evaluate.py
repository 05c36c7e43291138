"""Metrics against BasicSR and scikit-image; sets, tables and files."""

from __future__ import annotations

import csv
import json
import math
import re

import kornia
import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from sr_distill.cli import main
from sr_distill.console import format_columns
from sr_distill.data import downscale_to_uint8, luma
from sr_distill.data.images import read_rgb, to_tensor
from sr_distill.errors import ImageError, UserError
from sr_distill.evaluate import (
    AGREEMENT,
    METRICS,
    ImagePair,
    Profile,
    Report,
    default_metrics,
    evaluate_set,
    find_lpips,
    format_table,
    make_metric,
    notes_on,
    open_set,
    psnr_rgb,
    psnr_y,
    ssim_rgb,
    ssim_y,
    write_report,
)
from sr_distill.evaluate.measures import niqe
from sr_distill.evaluate.protocol import Score, SetResult
from sr_distill.evaluate.sets import BenchmarkSet
from sr_distill.features import lpips_network
from sr_distill.models import bicubic_model, build_model, save_model, upscale_uint8
from sr_distill.models.basicsr import import_basicsr

from ..conftest import natural_image, small, write_image

CPU = torch.device("cpu")


def _images(height=40, width=52):
    hr = to_tensor(natural_image(height, width))
    noise = torch.randint(-9, 10, hr.shape)
    return (hr.int() + noise).clamp(0, 255).to(torch.uint8)[None], hr[None]


@pytest.mark.parametrize("size", [(40, 52), (42, 42), (43, 107)])  # around the side of the blocks that SSIM works on
@pytest.mark.parametrize("border", [0, 2, 3, 4])
def test_psnr_and_ssim_equal_basicsr(border, size):
    metrics = import_basicsr("metrics.psnr_ssim")
    sr, hr = _images(*size)
    # BasicSR takes BGR, as OpenCV reads it.
    arrays = [image[0].permute(1, 2, 0).numpy()[:, :, ::-1] for image in (sr, hr)]
    for luma_only, psnr, ssim in ((True, psnr_y, ssim_y), (False, psnr_rgb, ssim_rgb)):
        expected = metrics.calculate_psnr(*arrays, border, test_y_channel=luma_only)
        assert psnr(sr, hr, border).item() == pytest.approx(expected, abs=1e-6)
        expected = metrics.calculate_ssim(*arrays, border, test_y_channel=luma_only)
        assert ssim(sr, hr, border).item() == pytest.approx(expected, abs=1e-7)


def test_rgb_metrics_equal_kornia_and_scikit_image():
    sr, hr = _images(64, 48)
    expected = kornia.metrics.psnr(sr.double(), hr.double(), 255.0).item()
    assert psnr_rgb(sr, hr, 0).item() == pytest.approx(expected, abs=1e-6)
    arrays = [image[0].permute(1, 2, 0).numpy() for image in (sr, hr)]
    assert psnr_rgb(sr, hr, 0).item() == pytest.approx(peak_signal_noise_ratio(*arrays), abs=1e-9)
    similarity = kornia.metrics.ssim(sr.double(), hr.double(), 11, 255.0, padding="valid")
    assert ssim_rgb(sr, hr, 0).item() == pytest.approx(similarity.mean().item(), abs=1e-6)


def test_niqe_of_an_image_without_structure_is_a_sentence():
    with pytest.raises(ImageError, match="no value for an image without structure"):
        niqe(torch.full((1, 3, 200, 200), 255, dtype=torch.uint8), 2)


def test_niqe_equals_basicsr_and_needs_no_reference():
    sr, _ = _images(120, 200)
    calculate = import_basicsr("metrics.niqe").calculate_niqe
    expected = calculate(sr[0].permute(1, 2, 0).numpy()[:, :, ::-1], 4)
    metric = make_metric("niqe", 4)
    assert metric.measure(ImagePair(sr, sr)).item() == pytest.approx(float(expected))
    assert not metric.higher_is_better
    with pytest.raises(ValueError, match="at least two patches"):
        metric.measure(ImagePair(sr[..., :100], sr[..., :100]))


@pytest.mark.parametrize("network", ["alex", "vgg", "squeeze"])
def test_lpips_metric_equals_the_package(network, random_backbones):
    sr, hr = _images(64, 72)
    own = lpips_network(network)
    expected = own(sr.float() / 127.5 - 1, hr.float() / 127.5 - 1).item()
    assert make_metric(f"lpips_{network}", 4).measure(ImagePair(sr, hr)).item() == pytest.approx(expected, rel=1e-4)


def test_every_metric_is_batched_and_says_its_convention(random_backbones):
    pairs = [_images(108, 210), tuple(reversed(_images(108, 210)))]
    sr, hr = (torch.cat([pair[i] for pair in pairs]) for i in range(2))
    framed = torch.nn.functional.pad(sr[..., 3:-3, 3:-3], (3, 3, 3, 3))
    for name in METRICS:
        metric = make_metric(name, 3)
        single = torch.cat([metric.measure(ImagePair(*pair)) for pair in pairs])
        torch.testing.assert_close(metric.measure(ImagePair(sr, hr)), single, atol=1e-6, rtol=1e-5)
        expected = "lpips_alex" if name == "lpips" else name
        assert metric.label in (expected, f"{expected}_b3")  # which of the two: test_metrics.py
        if metric.label == f"{expected}_b3":
            torch.testing.assert_close(metric.measure(ImagePair(framed, hr)), single, atol=1e-6, rtol=1e-5)
        assert metric.measure(ImagePair(sr, hr)).dtype == torch.float64


def test_images_of_one_size_go_together_and_give_what_they_give_alone(tmp_path):
    for index, size in enumerate([(48, 48), (48, 64), (48, 48), (48, 48), (64, 48)]):
        write_image(tmp_path / f"{index}.png", natural_image(*size, seed=index))
    benchmark = open_set(str(tmp_path), 2, None)
    groups = [[image.name for image in group] for group in benchmark.batches()]
    assert groups == [["0", "2", "3"], ["1"], ["4"]]
    assert [len(group) for group in benchmark.batches(most=2 * 48 * 48)] == [2, 1, 1, 1]
    model = bicubic_model(2)
    together = evaluate_set(model, benchmark, CPU)
    assert [score.image for score in together.scores] == ["0", "1", "2", "3", "4"]
    for image, score in zip(benchmark.images, together.scores):
        alone = evaluate_set(model, BenchmarkSet("one", [image]), CPU).scores[0]
        assert score.values == pytest.approx(alone.values)
    shares = [evaluate_set(model, benchmark, CPU, share=(rank, 2)).scores for rank in range(2)]
    assert sorted(shares[0] + shares[1], key=lambda s: s.image) == together.scores


def test_agreement_with_the_teacher_is_the_psnr_between_the_outputs(tmp_path):
    write_image(tmp_path / "a.png", natural_image(48, 48))
    write_image(tmp_path / "b.png", natural_image(64, 48))
    benchmark, model, outputs = open_set(str(tmp_path), 2, None), build_model(small("mobile_sr"), 2).eval(), {}
    evaluate_set(model, benchmark, CPU, on_image=outputs.__setitem__)
    assert math.isinf(evaluate_set(model, benchmark, CPU, teacher=outputs).scores[0].values[AGREEMENT])
    result = evaluate_set(bicubic_model(2), benchmark, CPU, teacher=outputs)
    lr, _ = benchmark.images[1].load(2)
    expected = psnr_y(upscale_uint8(bicubic_model(2), lr[None], CPU), outputs["b"][None], 2).item()
    assert result.scores[1].values[AGREEMENT] == pytest.approx(expected)


def test_two_images_with_one_stem_are_not_mixed_up(tmp_path):
    for seed, name in enumerate(("a.png", "a.bmp", "a.png.bmp", "b.png", "deep/b.png", "c.png")):
        write_image(tmp_path / "HR" / name, natural_image(48, 48, seed=seed))
    benchmark, model, outputs = open_set(str(tmp_path), 2, None), build_model(small("mobile_sr"), 2).eval(), {}
    names = {
        "a.png": "a.png",
        "a.bmp": "a.bmp",
        "a.png.bmp": "a.png.bmp",
        "b.png": "b.png",
        "deep/b.png": "deep/b.png",
        "c.png": "c",
    }
    assert {image.hr.relative_to(tmp_path / "HR").as_posix(): image.name for image in benchmark.images} == names
    evaluate_set(model, benchmark, CPU, on_image=outputs.__setitem__)
    scores = evaluate_set(model, benchmark, CPU, teacher=outputs).scores
    assert [score.values[AGREEMENT] for score in scores] == [math.inf] * 6
    # One LR image for two HR images of the same stem: whose it is cannot be told.
    write_image(tmp_path / "LR_bicubic/X2/ax2.png", natural_image(24, 24))
    problems = evaluate_set(model, open_set(str(tmp_path), 2, None), CPU).problems
    assert any("a.pngx2.png: this LR image is missing" in problem for problem in problems)


def test_ssim_equals_scikit_image():
    sr, hr = _images(64, 64)
    x, y = (luma(image[0].double() / 255)[0].numpy() * 255 for image in (sr, hr))
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    _, full = structural_similarity(x, y, full=True, **settings)
    assert ssim_y(sr, hr, 0).item() == pytest.approx(full[5:-5, 5:-5].mean(), abs=1e-8)


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
    assert benchmark.made_lr == 0
    assert torch.equal(benchmark.images[0].load(4)[0], to_tensor(lr))
    with pytest.raises(UserError, match=r"bx4\.png: this LR image is missing beside the others"):
        benchmark.images[1].load(4)
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
    for name, size in (("a", (12, 15)), ("b", (5, 5)), ("e", (4, 4))):
        write_image(root / f"benchmarks/Mine/LR_bicubic/X4/{name}x4.png", natural_image(*size))
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
        assert score.values["psnr_y_b4"] == pytest.approx(expected, abs=1e-3)


def test_gray_files_are_converted_like_colour_ones(tmp_path):
    gray = natural_image(40, 40)[:, :, 0]
    write_image(tmp_path / "gray/g.png", gray)
    write_image(tmp_path / "rgb/g.png", np.repeat(gray[:, :, None], 3, 2))
    scores = [
        evaluate_set(bicubic_model(2), open_set(str(tmp_path / kind), 2, None), CPU).mean("psnr_y")
        for kind in ("gray", "rgb")
    ]
    assert scores[0] == scores[1]


def _score(image, psnr, ssim, lpips=None, agreement=None):
    values = {"psnr_y_b4": psnr, "ssim_y_b4": ssim, "lpips_squeeze": lpips, AGREEMENT: agreement}
    return Score(image, {key: value for key, value in values.items() if value is not None})


RESULTS = [
    SetResult("bicubic", "Mine", [_score("a", 30.0, 0.8, 0.3, 25.0), _score("b", float("inf"), 1.0, 0.0, 27.0)]),
    SetResult("net", "Mine", [_score("a", 31.0, 0.9)], ["b.png: too small."]),
]
PROFILES = {"net": Profile(1234, 5_000_000, 600, 7_000_000, 8.0, 0.5, "cpu", 9_000_000)}
REPORT = Report(4, default_metrics(4, "squeeze"), RESULTS, PROFILES, ["Mine: a remark."])


def test_mean_is_per_image_and_leaves_identical_images_out():
    assert RESULTS[0].mean("psnr_y") == RESULTS[0].mean("psnr_y_b4") == 30.0
    assert RESULTS[0].mean("ssim_y") == 0.9
    assert RESULTS[1].mean("lpips_squeeze") is None
    notes = notes_on(RESULTS)
    assert "identical to HR" in notes[0]
    assert notes[1] == "net on Mine: b.png: too small."


def test_table_names_the_convention():
    table = format_table(REPORT, per_image=True)
    for expected in ("psnr_y_b4", "lpips_squeeze", AGREEMENT, "inf", "n/a", "mean of 2"):
        assert expected in table
    plain = Report(4, default_metrics(4), [SetResult("net", "Mine", [_score("a", 31.0, 0.9)])])
    assert AGREEMENT not in format_table(plain)
    assert "lpips" not in format_table(plain)
    assert "a border of 4 cut off" in "".join(plain.protocol)


def test_table_lays_out_its_columns():
    results = [
        SetResult("net", "S", [_score("a", 31.0, 0.9), _score("bb", 5.0, 0.8)]),
        SetResult("n", "S", [_score("a", 1.0, 0.7)]),
    ]
    assert format_table(Report(4, default_metrics(4), results), per_image=True).splitlines() == [
        "set  model  image      psnr_y_b4  ssim_y_b4",
        "---  -----  ---------  ---------  ---------",
        "S    net    a             31.000     0.9000",
        "S    net    bb             5.000     0.8000",
        "S    net    mean of 2     18.000     0.8500",
        "",
        "S    n      a              1.000     0.7000",
        "S    n      mean of 1      1.000     0.7000",
    ]
    assert format_columns(["a", "b"], [["x", "1"], ["yy", "22"]]).splitlines() == [
        "a    b",
        "--  --",
        "x    1",
        "yy  22",
    ]


def test_report_files(tmp_path):
    paths = write_report(tmp_path / "out", REPORT)
    tree = json.loads(paths[0].read_text())
    expected = {"psnr_y_b4": 30.0, "ssim_y_b4": 0.9, "lpips_squeeze": 0.15, AGREEMENT: 26.0}
    assert tree["results"][0]["mean"] == expected
    assert tree["results"][0]["images"][1]["psnr_y_b4"] == "inf"
    assert tree["results"][1]["problems"] == ["b.png: too small."]
    assert tree["models"]["net"]["macs"] == 5_000_000
    rows = list(csv.DictReader(paths[1].open()))
    assert [row["image"] for row in rows] == ["a", "b", "mean", "a", "mean"]
    assert rows[3]["lpips_squeeze"] == ""
    markdown = paths[2].read_text()
    assert "| Mine | bicubic | mean of 2 | 30.000 | 0.9000 | 0.1500 | 26.000 |" in markdown
    assert "| net | 1.2 K | 0.01 G |" in markdown
    assert "- Mine: a remark." in markdown


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


def test_sets_and_models_of_one_name_are_told_apart(tmp_path, capsys):
    for index, folder in enumerate("ab"):
        write_image(tmp_path / f"{folder}/HR/{index}.png", natural_image(40, 48, seed=index))
        save_model(build_model(small("mobile_sr"), 2), tmp_path / f"{folder}/net.safetensors")
    sets, models = ([str(tmp_path / folder / name) for folder in "ab"] for name in ("HR", "net.safetensors"))
    arguments = ["evaluate", "--datasets", *sets, "--scale", "2", "--metrics", "psnr_y", "--no-profile"]
    report = ["--out", str(tmp_path / "report")]
    assert main([*arguments, "--model", models[0], "--teacher", models[1], *report]) == 0
    rows = list(csv.DictReader((tmp_path / "report/results.csv").open()))
    assert {row["set"] for row in rows} == set(sets)
    assert {row["model"] for row in rows} == {"bicubic", *models}
    assert (tmp_path / "report/report.html").is_file()
    assert main([*arguments, "--model", f"bicubic={models[0]}"]) == 2
    assert "give the model another" in capsys.readouterr().err


def test_the_command_names_a_wrong_metric_and_measures_others(tmp_path, capsys):
    write_image(tmp_path / "set/a.png", natural_image(48, 64))
    arguments = ["--datasets", str(tmp_path / "set"), "--scale", "2", "--device", "cpu", "--metrics"]
    assert main(["evaluate", *arguments, "psnr_rgb", "ssim_rgb"]) == 0
    said = capsys.readouterr().out
    assert "psnr_rgb_b2" in said
    assert "psnr_y" not in said
    assert main(["evaluate", *arguments, "psnr_luma"]) == 2
    assert "there is no metric 'psnr_luma'" in capsys.readouterr().err


def test_what_cannot_be_opened_is_said_and_the_rest_is_measured(tmp_path, capsys):
    """A set without images and a model of another scale: two sentences, one table, exit code 1."""
    write_image(tmp_path / "set/a.png", natural_image(48, 64))
    (tmp_path / "empty").mkdir()
    for scale in (2, 3):
        save_model(build_model(small("mobile_sr"), scale), tmp_path / f"x{scale}.safetensors")
    models = ["--model", str(tmp_path / "x3.safetensors"), str(tmp_path / "x2.safetensors")]
    sets = ["--datasets", str(tmp_path / "empty"), str(tmp_path / "set")]
    arguments = [*models, *sets, "--scale", "2", "--device", "cpu", "--lpips", "none", "--out", str(tmp_path / "out")]
    assert main(["evaluate", *arguments]) == 1
    said = capsys.readouterr()
    assert re.search(r"x2 +mean of 1", said.out)
    assert "this set holds no image" in said.err
    assert "x3.safetensors" in said.err
    tree = json.loads((tmp_path / "out/results.json").read_text())
    assert list(tree["models"]) == ["x2"]
    assert main(["evaluate", "--datasets", str(tmp_path / "empty"), "--scale", "2"]) == 2
    assert "this set holds no image" in capsys.readouterr().err
