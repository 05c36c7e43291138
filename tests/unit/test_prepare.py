"""Benchmark sets: making LR, checking, converting; and what is said about a wrong one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sr_distill.cli import main
from sr_distill.data import downscale_to_uint8
from sr_distill.data.images import read_rgb, to_pixels, to_tensor
from sr_distill.errors import UserError
from sr_distill.evaluate import evaluate_set, known, open_set, remarks_on
from sr_distill.evaluate.known import KnownSet, checksum, known_sets
from sr_distill.models import bicubic_model

from ..conftest import natural_image, write_image

CPU = torch.device("cpu")


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Two images, of a set that is known."""
    paths = [
        write_image(tmp_path / f"benchmarks/Mine/HR/{name}.png", natural_image(50, 62, seed=seed))
        for seed, name in enumerate("ab")
    ]
    psnr = {s: evaluate_set(bicubic_model(s), open_set("Mine", s, tmp_path), CPU).mean("psnr_y") for s in (2, 3, 4)}
    mine = KnownSet(
        name="Mine", images=2, where="nowhere", bicubic_psnr_y=psnr, tolerance=0.05,
        pixels={path.stem: checksum(path) for path in paths},
    )  # fmt: skip
    for module in ("known", "prepare"):
        monkeypatch.setattr(f"sr_distill.evaluate.{module}.known_sets", lambda: {"Mine": mine})
    monkeypatch.setattr("sr_distill.cli.prepare_datasets.known_sets", lambda: {"Mine": mine})
    return tmp_path


def _prepare(root, *arguments):
    return main(["prepare_datasets", "--data-root", str(root), *arguments])


def test_the_files_of_known_sets_are_read_and_complete():
    sets = known_sets()
    assert {"Set5", "Set14", "B100", "Urban100", "Manga109", "DIV2K-valid"} <= set(sets)
    assert all(not s.pixels or len(s.pixels) == s.images for s in sets.values())
    assert sets["Set5"].bicubic_psnr_y[4] == 28.43


def test_lr_is_made_as_matlab_does_and_a_second_time_found_right(root, capsys):
    assert _prepare(root) == 0
    said = capsys.readouterr().out
    assert "Mine x3: 2 LR images made." in said
    assert "all 2 images have the pixels of the common version" in said
    for scale in (2, 3, 4):
        hr = to_tensor(read_rgb(root / "benchmarks/Mine/HR/a.png"))
        height, width = (side // scale * scale for side in hr.shape[-2:])
        lr = read_rgb(root / f"benchmarks/Mine/LR_bicubic/X{scale}/ax{scale}.png")
        assert np.array_equal(lr, to_pixels(downscale_to_uint8(hr[:, :height, :width], scale)))
    assert open_set("Mine", 4, root).made_lr == 0
    assert _prepare(root) == 0
    assert "Mine x3: 2 LR images there, equal to MATLAB's bicubic." in capsys.readouterr().out


def test_wrong_lr_is_said_and_kept(root, capsys):
    hr = read_rgb(root / "benchmarks/Mine/HR/a.png")[:48, :60]
    other = write_image(root / "benchmarks/Mine/LR_bicubic/X4/ax4.png", hr[::4, ::4])
    wrong = write_image(root / "benchmarks/Mine/LR_bicubic/X2/bx2.png", natural_image(5, 5))
    (root / "benchmarks/Mine/LR_bicubic/X3").mkdir()
    (root / "benchmarks/Mine/LR_bicubic/X3/ax3.png").write_text("text")
    before = other.read_bytes(), wrong.read_bytes()
    assert _prepare(root, "Mine") == 1
    said = capsys.readouterr().err
    assert "Mine x4: 1 LR images there differ from MATLAB's bicubic" in said
    assert "bx2.png has 5x5 pixels" in said
    assert "ax3.png: cannot be read" in said
    assert "no row of this set can be compared" in " ".join(said.split())
    assert (other.read_bytes(), wrong.read_bytes()) == before


def test_a_set_of_another_size_or_kernel_is_noticed_by_its_bicubic_row(root):
    benchmark = open_set("Mine", 4, root)
    result = evaluate_set(bicubic_model(4), benchmark, CPU)
    assert remarks_on(benchmark, 4, result) == []
    for image in benchmark.images:  # nearest instead of bicubic
        pixels = read_rgb(image.hr)[:48, :60]
        write_image(root / f"benchmarks/Mine/LR_bicubic/X4/{image.name}x4.png", pixels[2::4, 2::4])
    other = open_set("Mine", 4, root)
    said = remarks_on(other, 4, evaluate_set(bicubic_model(4), other, CPU))
    assert len(said) == 1
    assert "LR was made by another kernel" in said[0]
    (root / "benchmarks/Mine/HR/b.png").unlink()
    smaller = open_set("Mine", 3, root)
    said = remarks_on(smaller, 3, evaluate_set(bicubic_model(3), smaller, CPU))
    assert "Mine has 2 images in the papers, here 1" in said[0]


def test_evaluation_says_it(root, capsys):
    (root / "benchmarks/Mine/HR/b.png").unlink()
    arguments = ["--datasets", "Mine", "--scale", "2", "--data-root", str(root), "--lpips", "none", "--device", "cpu"]
    assert main(["evaluate", *arguments]) == 0
    assert "Mine has 2 images in the papers, here 1" in capsys.readouterr().out


def test_the_layout_of_selfexsr_is_converted(root, capsys):
    """HR is there once for each scale, cut to a multiple of it; LR beside it."""
    source = root / "download"
    whole = natural_image(51, 63, seed=5)
    for scale in (2, 4):
        height, width = (side // scale * scale for side in whole.shape[:2])
        hr = whole[:height, :width]
        write_image(source / f"image_SRF_{scale}/img_001_SRF_{scale}_HR.png", hr)
        write_image(source / f"image_SRF_{scale}/img_001_SRF_{scale}_LR.png", hr[::scale, ::scale])
    with pytest.raises(UserError, match="layout of SelfExSR"):
        open_set(str(source), 4, None)
    assert _prepare(root, "Urban", "--from", str(source), "--scales", "2", "4") == 0
    assert "1 HR images converted" in capsys.readouterr().out
    assert np.array_equal(read_rgb(root / "benchmarks/Urban/HR/img_001.png"), whole[:50, :62])
    benchmark = open_set("Urban", 4, root)
    assert benchmark.made_lr == 0
    assert benchmark.images[0].load(4)[1].shape == (3, 48, 60)


def test_a_flat_folder_keeps_its_lr_apart(root):
    write_image(root / "benchmarks/Flat/x.png", natural_image(40, 40))
    assert _prepare(root, "Flat", "--scales", "2") == 0
    benchmark = open_set("Flat", 2, root)
    assert [image.name for image in benchmark.images] == ["x"]
    assert benchmark.made_lr == 0


def test_what_is_missing_is_said_with_where_it_is(root, capsys):
    (root / "benchmarks/Mine").rename(root / "away")
    assert _prepare(root) == 0
    assert "Mine: not in" in capsys.readouterr().out
    assert _prepare(root, "Mine") == 1
    assert "2 images. nowhere. Put them into" in capsys.readouterr().err
    assert _prepare(root, "Mien") == 1
    assert "Did you mean 'Mine'" in capsys.readouterr().err


def test_lr_is_made_for_each_of_two_images_with_one_stem(root):
    folder = root / "benchmarks/Twins"
    for seed, name in enumerate(("HR/a.png", "HR/a.bmp", "HR/b.png", "HR/deep/b.png")):
        write_image(folder / name, natural_image(40, 48, seed=seed))
    assert _prepare(root, "Twins", "--scales", "2") == 0
    benchmark = open_set("Twins", 2, root)
    assert benchmark.made_lr == 0
    assert {image.name for image in benchmark.images} == {"a.png", "a.bmp", "b.png", "deep/b.png"}
    for image in benchmark.images:
        lr, hr = image.load(2)
        assert torch.equal(lr, downscale_to_uint8(hr, 2)), image.name


def test_check_writes_nothing(root):
    assert _prepare(root, "Mine", "--check") == 0
    assert not (root / "benchmarks/Mine/LR_bicubic").exists()


def test_a_broken_file_of_known_sets_is_named(tmp_path, monkeypatch):
    (tmp_path / "x.yml").write_text("name: X\nimages: none\n")
    monkeypatch.setattr(known, "FOLDER", tmp_path)
    known_sets.cache_clear()
    with pytest.raises(UserError, match=r"x\.yml"):
        known_sets()
    known_sets.cache_clear()


def test_a_set_of_which_nothing_can_be_read_is_said(root, capsys):
    for name in "ab":
        (root / f"benchmarks/Mine/HR/{name}.png").write_text("text")
    with pytest.raises(UserError, match=r"a\.png: cannot be read"):
        checksum(root / "benchmarks/Mine/HR/a.png")
    assert _prepare(root, "Mine") == 1
    said = capsys.readouterr().err
    assert "a.png: cannot be read" in said
    assert "b.png: cannot be read" in said
    assert "2 of 2 images do not have the pixels" in said


def test_a_set_that_cannot_be_used_does_not_keep_the_others_from_being(root, capsys):
    (root / "benchmarks/Empty").mkdir()
    assert _prepare(root, "Empty", "Mine", "--scales", "2") == 1
    said = capsys.readouterr()
    assert "Empty" in said.err
    assert "Mine x2: 2 LR images made." in said.out


def test_what_is_not_in_the_layout_of_selfexsr_is_not_taken_for_it(root, capsys):
    assert _prepare(root, "Urban", "--from", str(root / "benchmarks/Mine")) == 2
    assert f"put the images into {root / 'benchmarks/Urban/HR'}" in capsys.readouterr().err
