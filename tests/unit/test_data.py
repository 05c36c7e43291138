"""Images in, crops out; numbers against BasicSR, scikit-image and kornia."""

from __future__ import annotations

import json

import kornia
import numpy as np
import pytest
import skimage.color
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from sr_distill.contracts import Batch
from sr_distill.data import (
    PairStore,
    StepBatches,
    downscale_to_uint8,
    embedded,
    imresize,
    luma,
    open_pairs,
    rgb_to_ycbcr,
    step_loader,
    ycbcr_to_rgb,
)
from sr_distill.data.color import with_luma_of
from sr_distill.data.crops import _dihedral
from sr_distill.data.images import list_images, open_image, read_rgb, to_rgb, to_tensor, to_uint8, write_png
from sr_distill.errors import UserError
from sr_distill.models.basicsr import import_basicsr
from sr_distill.options.schema import SourceOptions

from ..conftest import natural_image, write_image


@pytest.mark.parametrize("size", [(48, 36), (31, 50), (12, 97)])
@pytest.mark.parametrize("scale", [1 / 2, 1 / 3, 1 / 4, 2, 3, 4])
def test_imresize_equals_basicsr(size, scale):
    image = torch.rand(3, *size)
    expected = import_basicsr("utils.matlab_functions").imresize(image, scale)
    got = imresize(image, scale)
    assert got.shape == expected.shape
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=0)  # BasicSR works in float32; 1 level is 4e-3


def test_imresize_of_a_batch_and_its_gradient():
    image = torch.rand(2, 3, 8, 12, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(imresize(image, 2)[1], imresize(image[1], 2))
    assert torch.autograd.gradcheck(lambda x: imresize(x, 0.5), image)


def test_imresize_keeps_a_constant_image_and_very_small_ones():
    torch.testing.assert_close(imresize(torch.full((1, 9, 7), 0.3), 1 / 4), torch.full((1, 3, 2), 0.3))
    assert imresize(torch.rand(1, 1, 1), 4).shape == (1, 4, 4)


def test_downscale_rounds_and_clips():
    hr = torch.zeros(3, 16, 16, dtype=torch.uint8)
    hr[:, :, 8:] = 255
    lr = downscale_to_uint8(hr, 2)
    assert lr.dtype == torch.uint8
    assert lr.shape == (3, 8, 8)
    assert lr.min() == 0  # the kernel overshoots on both sides of an edge
    assert lr.max() == 255


def test_ycbcr_equals_basicsr_and_scikit_image():
    image = np.random.default_rng(0).random((5, 7, 3)).astype(np.float32)
    expected = import_basicsr("utils.color_util").rgb2ycbcr(image)
    got = rgb_to_ycbcr(torch.from_numpy(image).permute(2, 0, 1)).permute(1, 2, 0)
    np.testing.assert_allclose(got, expected, atol=1e-6)
    np.testing.assert_allclose(got * 255, skimage.color.rgb2ycbcr(image), atol=1e-3)


def test_ycbcr_back_is_exact_also_out_of_range():
    image = torch.rand(2, 3, 6, 5, dtype=torch.float64) * 3 - 1
    torch.testing.assert_close(ycbcr_to_rgb(rgb_to_ycbcr(image)), image, atol=1e-12, rtol=0)
    torch.testing.assert_close(luma(image), rgb_to_ycbcr(image)[:, :1])


def test_full_range_luma_of_kornia_is_another_thing():
    """kornia and PIL use full-range luma: 1.32 dB apart from the papers' 16-235; ours must not be that."""
    white = torch.ones(1, 3, 1, 1)
    assert luma(white).item() == pytest.approx(235 / 255)
    assert kornia.color.rgb_to_ycbcr(white)[:, 0].item() == pytest.approx(1.0, abs=1e-3)


def test_with_luma_of_keeps_chroma():
    image, source = torch.rand(2, 3, 4, 5, dtype=torch.float64), torch.rand(2, 3, 4, 5, dtype=torch.float64)
    mixed = rgb_to_ycbcr(with_luma_of(image, source))
    torch.testing.assert_close(mixed[:, :1], luma(source), atol=1e-6, rtol=0)
    torch.testing.assert_close(mixed[:, 1:], rgb_to_ycbcr(image)[:, 1:], atol=1e-6, rtol=0)


class _Calls(TorchDispatchMode):
    """Names of the operations that PyTorch runs while this lasts."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("convert", [rgb_to_ycbcr, ycbcr_to_rgb, luma, lambda image: imresize(image, 0.25)])
def test_constants_are_made_and_moved_once(convert, dtype):
    making = {"_to_copy", "lift_fresh", "arange", "linalg_inv_ex", "scalar_tensor"}
    image = torch.rand(2, 3, 37, 23, dtype=dtype)
    first = convert(image)
    with _Calls() as calls:
        assert torch.equal(convert(image), first)
    assert calls.names
    assert not calls.names & making


def test_constants_that_inference_made_serve_training():
    with torch.inference_mode():
        imresize(torch.rand(1, 3, 41, 43), 2)
        rgb_to_ycbcr(torch.rand(1, 3, 2, 2, dtype=torch.float16))
    image = torch.rand(1, 3, 41, 43, requires_grad=True)
    imresize(image, 2).sum().backward()
    half = torch.rand(1, 3, 2, 2, dtype=torch.float16, requires_grad=True)
    rgb_to_ycbcr(half).sum().backward()
    assert image.grad.isfinite().all()
    assert half.grad.isfinite().all()


@pytest.mark.parametrize("convert", [rgb_to_ycbcr, ycbcr_to_rgb, luma, lambda image: imresize(image, 2)])
def test_colours_and_bicubic_are_not_autocast(convert):
    image = torch.rand(1, 3, 5, 6)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = convert(image)
    assert torch.equal(mixed, convert(image))


def test_image_modes(tmp_path):
    values = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "16bit.png")
    np.testing.assert_array_equal(read_rgb(tmp_path / "16bit.png")[:, :, 1], np.rint(values / 257).astype(np.uint8))
    gray = natural_image(8, 9)[:, :, 0]
    np.testing.assert_array_equal(read_rgb(write_image(tmp_path / "gray.png", gray)), np.repeat(gray[:, :, None], 3, 2))
    rgba = np.dstack([natural_image(8, 9), np.full((8, 9), 7, np.uint8)])
    np.testing.assert_array_equal(read_rgb(write_image(tmp_path / "alpha.png", rgba)), rgba[:, :, :3])
    palette = Image.fromarray(natural_image(8, 9)).quantize(16)
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_rgb(tmp_path / "palette.png"), np.array(palette.convert("RGB")))


def test_exif_orientation_is_applied(tmp_path):
    image = Image.fromarray(natural_image(8, 20))
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    assert to_rgb(open_image(tmp_path / "turned.png")).shape == (20, 8, 3)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n broken"])
def test_broken_images_are_named(tmp_path, content):
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.png: cannot be read as an image"):
        read_rgb(path)


def test_a_cut_off_image_is_named(tmp_path):
    path = write_image(tmp_path / "cut.png", natural_image(64, 64))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"cut\.png"):
        read_rgb(path)
    with pytest.raises(UserError, match="no such file"):
        read_rgb(tmp_path / "none.png")


def test_to_uint8_clips_and_rounds():
    got = to_uint8(torch.tensor([-1.0, 0.0, 0.5 / 255 - 1e-4, 0.5 / 255 + 1e-4, 1.0, 2.0]))
    assert got.tolist() == [0, 0, 0, 1, 255, 255]


def test_write_png_leaves_what_was_there_when_it_fails(tmp_path):
    path = write_image(tmp_path / "out.png", natural_image(8, 8))
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_png(path, np.zeros((4, 4, 7), np.uint8))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["out.png"]


def test_list_images_goes_down_and_is_sorted(tmp_path):
    for name in ("b.png", "sub/a.JPG", ".hidden.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [p.relative_to(tmp_path).as_posix() for p in list_images(tmp_path)] == ["b.png", "sub/a.JPG"]


def test_embedded_photos_exist_and_do_not_overlap():
    training, held_out = embedded.training_photos(), embedded.held_out_photos()
    assert not set(training) & set(held_out)
    for path in training + held_out:
        assert min(read_rgb(path).shape[:2]) >= 256


def _photos(tmp_path, count=3):
    for index in range(count):
        write_image(tmp_path / "photos" / f"p{index}.png", natural_image(70 + index, 83, seed=index))
    return SourceOptions(hr=str(tmp_path / "photos"))


def test_pairs_are_made_once_and_equal_matlab_like_bicubic(tmp_path):
    source = _photos(tmp_path)
    store = open_pairs([source], 3, 16, tmp_path / "cache", "stop")
    assert store.names == ["p0.png", "p1.png", "p2.png"]
    hr = natural_image(70, 83)[:69, :81]
    np.testing.assert_array_equal(store.hr[0], hr)
    expected = import_basicsr("utils.matlab_functions").imresize(to_tensor(hr).double().float() / 255, 1 / 3)
    assert (
        np.abs(store.lr[0].transpose(2, 0, 1).astype(int) - expected.mul(255).clamp(0, 255).round().numpy()).max() <= 1
    )
    folder = store.folder
    stamp = (folder / "hr.bin").stat().st_mtime_ns
    assert open_pairs([source], 3, 16, tmp_path / "cache", "stop").folder == folder
    assert (folder / "hr.bin").stat().st_mtime_ns == stamp
    write_image(tmp_path / "photos/p0.png", natural_image(70, 83, seed=9))
    assert open_pairs([source], 3, 16, tmp_path / "cache", "stop").folder != folder


def test_downscale_first(tmp_path):
    _photos(tmp_path, 1)
    store = open_pairs([SourceOptions(hr=str(tmp_path / "photos"), downscale=2)], 2, 8, tmp_path / "cache", "stop")
    assert store.hr[0].shape == (34, 40, 3)


def test_lr_folder_is_used_and_checked(tmp_path):
    source = _photos(tmp_path, 2)
    lr = natural_image(35, 41, seed=5)
    write_image(tmp_path / "lr/p0x2.png", lr)
    write_image(tmp_path / "lr/p1x2.png", lr[:-1])
    both = SourceOptions(hr=source.hr, lr=str(tmp_path / "lr"))
    with pytest.raises(UserError, match=r"p1x2\.png: 41x34 pixels, but .*p1\.png at scale 2 needs 41x35"):
        open_pairs([both], 2, 16, tmp_path / "cache", "stop")
    store = open_pairs([both], 2, 16, tmp_path / "cache", "skip")
    assert store.names == ["p0.png"]
    np.testing.assert_array_equal(store.lr[0], lr)


def test_unusable_photos_stop_or_are_skipped_by_name(tmp_path):
    source = _photos(tmp_path, 2)
    (tmp_path / "photos/broken.jpg").write_bytes(b"no")
    write_image(tmp_path / "photos/tiny.png", natural_image(20, 20))
    with pytest.raises(UserError) as caught:
        open_pairs([source], 2, 16, tmp_path / "cache", "stop")
    assert "broken.jpg" in str(caught.value)
    assert "tiny.png: too small: 20x20" in str(caught.value)
    store = open_pairs([source], 2, 16, tmp_path / "cache", "skip")
    assert len(store.names) == 2
    assert len(store.skipped) == 2
    with pytest.raises(UserError, match=r"broken\.jpg"):  # also when a cache made with "skip" is there
        open_pairs([source], 2, 16, tmp_path / "cache", "stop")


def test_nothing_usable_is_an_error(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no image found"):
        open_pairs([SourceOptions(hr=str(tmp_path / "empty"))], 2, 16, tmp_path / "cache", "skip")
    (tmp_path / "empty/a.png").write_bytes(b"no")
    with pytest.raises(UserError, match="no usable training photo"):
        open_pairs([SourceOptions(hr=str(tmp_path / "empty"))], 2, 16, tmp_path / "cache", "skip")
    with pytest.raises(UserError, match="training folder not found"):
        open_pairs([SourceOptions(hr=str(tmp_path / "none"))], 2, 16, tmp_path / "cache", "skip")
    assert not list((tmp_path / "cache").glob("*"))


def test_a_damaged_cache_is_named(tmp_path):
    store = open_pairs([_photos(tmp_path)], 2, 16, tmp_path / "cache", "stop")
    path = store.folder / "hr.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="is damaged"):
        PairStore(store.folder)


@pytest.fixture
def store(tmp_path):
    store = open_pairs([_photos(tmp_path)], 4, 8, tmp_path / "cache", "stop")
    store.add_teacher("teacher", "x", lambda lr: torch.repeat_interleave(torch.repeat_interleave(lr, 4, 1), 4, 2))
    return store


def test_crops_are_aligned(store):
    """The stored teacher is LR repeated 4x4, so in every crop it must be the LR crop repeated."""
    batches = StepBatches(store, 8, 16, seed=3)
    for step in range(4):
        batch = batches[step]
        assert batch.lr.shape == (16, 3, 8, 8)
        assert batch.hr.shape == batch.teacher_sr["teacher"].shape == (16, 3, 32, 32)
        repeated = batch.lr.repeat_interleave(4, 2).repeat_interleave(4, 3)
        torch.testing.assert_close(batch.teacher_sr["teacher"], repeated)
        inside = (slice(None), slice(None), slice(3, 5), slice(3, 5))  # where the crop's border plays no part
        made = imresize(batch.hr.double(), 1 / 4)
        assert (made - batch.lr).abs()[inside].max() <= 1


def test_crops_depend_on_seed_and_step_alone(store):
    first, again, other = (StepBatches(store, 8, 4, seed=s) for s in (1, 1, 2))
    assert torch.equal(first[7].hr, again[7].hr)
    assert not torch.equal(first[7].hr, first[8].hr)
    assert not torch.equal(first[7].hr, other[7].hr)


def test_processes_share_the_batch(store):
    whole = StepBatches(store, 8, 4, seed=1)[5]
    shares = [StepBatches(store, 8, 4, 1, rank, 2)[5] for rank in range(2)]
    assert torch.equal(torch.cat([share.hr for share in shares]), whole.hr)


def test_all_turns_and_flips_occur(store):
    batches, seen = StepBatches(store, 8, 64, seed=1), set()
    base = np.arange(12).reshape(2, 2, 3)
    assert len({_dihedral(base, index).tobytes() for index in range(8)}) == 8
    for step in range(4):
        seen |= {crop.numpy().tobytes() for crop in batches[step].hr}
    assert len(seen) > 200


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_gives_the_steps_in_order(store, workers):
    batches = StepBatches(store, 8, 4, seed=1)
    loaded = list(step_loader(batches, 3, 8, workers))
    assert len(loaded) == 5
    for step, batch in zip(range(3, 8), loaded):
        assert torch.equal(batch.lr, batches[step].lr)


def test_batch_to_float():
    batch = Batch(torch.tensor([[[[255]]]], dtype=torch.uint8), torch.zeros(1, 1, 2, 2, dtype=torch.uint8)).to(
        torch.device("cpu")
    )
    assert batch.lr.item() == 1.0
    assert batch.hr.dtype == torch.float32
    assert batch.teacher_sr == {}


def test_index_says_what_was_skipped(tmp_path):
    source = _photos(tmp_path, 1)
    (tmp_path / "photos/bad.png").write_bytes(b"no")
    store = open_pairs([source], 2, 16, tmp_path / "cache", "skip")
    assert "bad.png" in json.loads((store.folder / "index.json").read_text())["skipped"][0]
