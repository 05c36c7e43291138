"""Published checkpoints on benchmark data reproduce the published numbers; needs SR_DISTILL_DATA."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F

from sr_distill.cli import main
from sr_distill.data import downscale_to_uint8
from sr_distill.data.images import read_rgb, to_tensor
from sr_distill.evaluate import evaluate_set, mean_scores, open_set
from sr_distill.export import in_runtime
from sr_distill.features import lpips_network, vgg19_features
from sr_distill.losses import lpips, perceptual
from sr_distill.models import bicubic_model, load_model
from sr_distill.models.basicsr import import_basicsr
from sr_distill.zoo import ZOO, open_model

pytestmark = pytest.mark.data
CPU = torch.device("cpu")

# PSNR-Y and SSIM-Y on Set5 and Set14; None: no published number at hand. Sources: the papers of IMDN (table 3), PAN (table 3),
# RLFN (table 4) and HiT-SR (table 2) as far as given there; PSNR of these very files measured with BasicSR's metrics. CARN-M is one file.
PUBLISHED = {
    ("IMDN_x2.pth", 2): ((38.00, 0.9605), (33.63, 0.9177)),
    ("IMDN_x3.pth", 3): ((34.36, 0.9270), (30.33, 0.8417)),
    ("IMDN_x4.pth", 4): ((32.21, 0.8948), (28.58, 0.7811)),
    ("PANx2_DF2K.pth", 2): ((38.00, None), (33.59, None)),
    ("PANx3_DF2K.pth", 3): ((34.40, None), (30.36, None)),
    ("PANx4_DF2K.pth", 4): ((32.13, None), (28.61, None)),
    ("rlfn_x2.pth", 2): ((38.07, None), (33.72, None)),
    ("rlfn_s_x2.pth", 2): ((38.05, None), (33.62, None)),
    ("rlfn_x4.pth", 4): ((32.24, None), (28.62, None)),
    ("rlfn_s_x4.pth", 4): ((32.24, None), (28.62, None)),
    ("rlfn_ntire_x4.pth", 4): ((32.10, None), (28.60, None)),
    ("carn_m.pth", 2): ((37.68, None), (33.30, None)),
    ("carn_m.pth", 3): ((34.06, None), (30.10, None)),
    ("carn_m.pth", 4): ((31.88, None), (28.42, None)),
    ("rfdn_x4.pth", 4): ((32.16, None), (28.65, None)),
    ("efdn_x4.pth", 4): ((32.08, None), (28.58, None)),
    ("bsrn_x4.pth", 4): ((32.01, None), (28.59, None)),
    ("hit_srf_x4.pth", 4): ((32.55, None), (28.87, None)),
    ("craft_x4.pth", 4): ((32.40, None), None),
}
BICUBIC = {
    2: ((33.68, 0.9304), (30.33, None)),
    3: ((30.40, 0.8690), (27.63, None)),
    4: ((28.43, 0.8113), (26.09, None)),
}


def _check(result, expected):
    psnr, ssim = expected
    assert not result.problems
    # Published numbers are rounded to two decimals: half of the last one is added to the allowed difference of 0.01 dB.
    assert result.mean("psnr_y") == pytest.approx(psnr, abs=0.01 + 0.005)
    if ssim is not None:
        assert result.mean("ssim_y") == pytest.approx(ssim, abs=0.0005)


@pytest.mark.parametrize(("file", "scale"), PUBLISHED)
def test_published_checkpoints(data_root, file, scale):
    model = load_model(data_root / "weights" / file, scale=scale)
    for name, expected in zip(("Set5", "Set14"), PUBLISHED[file, scale]):
        if expected is not None:
            _check(evaluate_set(model, open_set(name, scale, data_root), CPU), expected)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_bicubic_rows(data_root, scale):
    for name, expected in zip(("Set5", "Set14"), BICUBIC[scale]):
        benchmark = open_set(name, scale, data_root)
        assert benchmark.made_lr == 0
        _check(evaluate_set(bicubic_model(scale), benchmark, CPU), expected)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_made_lr_equals_matlabs_to_the_bit(data_root, scale):
    for name in ("Set5", "Set14"):
        for image in open_set(name, scale, data_root).images:
            lr, hr = image.load(scale)
            assert torch.equal(downscale_to_uint8(hr, scale), lr), image.name


def test_ssim_and_psnr_equal_basicsr_on_real_images(data_root):
    metrics = import_basicsr("metrics.psnr_ssim")
    model = load_model(data_root / "weights/rlfn_s_x4.pth")
    benchmark = open_set("Set5", 4, data_root)
    scores = evaluate_set(model, benchmark, CPU).scores
    for image, score in list(zip(benchmark.images, scores))[:2]:
        lr, hr = image.load(4)
        with torch.no_grad():
            sr = model(lr[None].float() / 255)[0].clamp(0, 1).mul(255).round().byte()
        arrays = [tensor.permute(1, 2, 0).numpy()[:, :, ::-1] for tensor in (sr, hr)]
        assert score.values["psnr_y_b4"] == pytest.approx(
            metrics.calculate_psnr(*arrays, 4, test_y_channel=True), abs=1e-6
        )
        assert score.values["ssim_y_b4"] == pytest.approx(
            metrics.calculate_ssim(*arrays, 4, test_y_channel=True), abs=1e-7
        )


def test_lpips_squeeze_gives_its_known_value(data_root):
    """Monarch of Set14 against itself shrunk by 4 and enlarged again: 0.3120."""
    image = to_tensor(read_rgb(data_root / "benchmarks/Set14/HR/monarch.png")).float()[None] / 255
    size = image.shape[-2:]
    small = F.interpolate(image, size=[s // 4 for s in size], mode="bicubic", antialias=True)
    again = F.interpolate(small, size=size, mode="bicubic").clamp(0, 1)
    with torch.no_grad():
        assert lpips(again, image, "squeeze").item() == pytest.approx(0.3120, abs=5e-4)
    assert not any(parameter.requires_grad for parameter in lpips_network("squeeze").parameters())


def test_perceptual_on_pretrained_vgg_knows_blur_from_a_shift(data_root):
    image = to_tensor(read_rgb(data_root / "benchmarks/Set5/HR/bird.png")).float()[None] / 255
    blurred = F.avg_pool2d(image, 5, stride=1, padding=2, count_include_pad=False)
    brighter = (image + (blurred - image).abs().mean()).clamp(0, 1)  # as large in L1, but nothing is lost
    layers = {"conv2_2": 1.0, "relu3_4": 1.0}
    with torch.no_grad():
        assert perceptual(image, image, layers).item() == 0
        assert perceptual(blurred, image, layers) > 2 * perceptual(brighter, image, layers)
    assert len(vgg19_features()) == 37


@pytest.mark.parametrize("name", ZOO)
def test_the_cards_of_the_zoo_tell_what_is_measured(data_root, name):
    """Each card ends with the numbers as JSON: they must be what the shipped file gives."""
    card = ZOO[name].with_suffix(".md").read_text()
    forms = json.loads(card.split("```json")[1].split("```")[0])
    model = open_model(name)
    for form, promised in forms.items():
        as_form = model if form == "fp32" else in_runtime(model, "onnx", form)
        near = 0.006 if form == "fp32" else 0.02  # processors round sums of bytes differently
        for key in promised if form == "fp32" else ["Set5"]:
            psnr, ssim, *distances = promised[key]
            metrics = ("psnr_y", "ssim_y", *(("lpips_squeeze",) if distances else ()))
            result = mean_scores(as_form, (key,), metrics, data_root)[key]
            assert result["psnr_y"] == pytest.approx(psnr, abs=near)
            assert result["ssim_y"] == pytest.approx(ssim, abs=near / 100)
            assert not distances or result["lpips_squeeze"] == pytest.approx(distances[0], abs=near / 60)


def test_evaluate_command_on_a_published_checkpoint(data_root, tmp_path, capsys):
    model = str(data_root / "weights/PANx3_DF2K.pth")
    arguments = [
        "--model",
        model,
        "--datasets",
        "Set5",
        "--scale",
        "3",
        "--data-root",
        str(data_root),
        "--out",
        str(tmp_path),
    ]
    assert main(["evaluate", *arguments, "--device", "cpu", "--lpips", "squeeze"]) == 0
    said = capsys.readouterr().out
    assert "lpips_squeeze" in said
    tree = json.loads((tmp_path / "results.json").read_text())
    bicubic, pan = (result["mean"] for result in tree["results"])
    assert pan["psnr_y_b3"] == pytest.approx(34.40, abs=0.015)
    assert pan["lpips_squeeze"] < bicubic["lpips_squeeze"]
