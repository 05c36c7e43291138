"""Images in, crops out; numbers against BasicSR, scikit-image and kornia."""

from __future__ import annotations

import json
import os
import pickle
import resource
import stat

import kornia
import numpy as np
import pytest
import skimage.color
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from sr_distill import devices
from sr_distill.contracts import Batch
from sr_distill.data import (
    StepBatches,
    downscale_to_uint8,
    embedded,
    imresize,
    luma,
    open_pairs,
    packed,
    packs,
    rgb_to_ycbcr,
    step_loader,
    ycbcr_to_rgb,
)
from sr_distill.data.color import with_luma_of
from sr_distill.data.crops import _dihedral
from sr_distill.data.hashes import FileHashes
from sr_distill.data.images import list_images, open_image, read_rgb, to_pixels, to_rgb, to_tensor, to_uint8, write_png
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


@pytest.fixture
def decoded(monkeypatch):
    """The names of the files that are decoded, in order."""
    names = []
    monkeypatch.setattr(packed, "read_rgb", lambda path: names.append(path.name) or read_rgb(path))
    return names


def test_pairs_equal_matlab_like_bicubic(tmp_path):
    store = open_pairs([_photos(tmp_path)], 3, 16, tmp_path / "cache", "stop")
    assert store.names == ["p0.png", "p1.png", "p2.png"]
    hr = natural_image(70, 83)[:69, :81]
    np.testing.assert_array_equal(store.hr[0], hr)
    expected = import_basicsr("utils.matlab_functions").imresize(to_tensor(hr).double().float() / 255, 1 / 3)
    assert (
        np.abs(store.lr[0].transpose(2, 0, 1).astype(int) - expected.mul(255).clamp(0, 255).round().numpy()).max() <= 1
    )


def test_only_what_is_new_is_decoded(tmp_path, decoded):
    source, cache = _photos(tmp_path), tmp_path / "cache"
    open_pairs([source], 3, 16, cache, "stop")
    assert decoded == ["p0.png", "p1.png", "p2.png"]
    open_pairs([source], 3, 8, cache, "stop")  # lr_size chooses among the pairs, and changes none
    write_image(tmp_path / "photos/a.png", natural_image(60, 60, seed=7))
    (tmp_path / "photos/p2.png").rename(tmp_path / "photos/z.png")  # a name plays no part
    store = open_pairs([source], 3, 16, cache, "stop")
    assert decoded[3:] == ["a.png"]
    assert store.names == ["a.png", "p0.png", "p1.png", "z.png"]
    np.testing.assert_array_equal(store.hr[3], natural_image(72, 83, seed=2)[:, :81])
    write_image(tmp_path / "photos/p0.png", natural_image(70, 83, seed=9))
    store = open_pairs([source], 3, 16, cache, "stop")
    assert decoded[4:] == ["p0.png"]
    np.testing.assert_array_equal(store.hr[1], natural_image(70, 83, seed=9)[:69, :81])
    open_pairs([source], 2, 16, cache, "stop")
    open_pairs([SourceOptions(hr=source.hr, downscale=2)], 2, 8, cache, "stop")
    assert len(decoded) == 5 + 4 + 4  # another scale or downscale makes other pairs


def test_another_lr_file_makes_another_pair(tmp_path, decoded):
    source = _photos(tmp_path, 1)
    both = SourceOptions(hr=source.hr, lr=str(tmp_path / "lr"))
    right = to_pixels(downscale_to_uint8(to_tensor(read_rgb(tmp_path / "photos/p0.png"))[:, :70, :82], 2))
    for change in (0, 1):
        lr = right // (1 + change)
        write_image(tmp_path / "lr/p0x2.png", lr)
        np.testing.assert_array_equal(open_pairs([both], 2, 16, tmp_path / "cache", "stop").lr[0], lr)
    assert decoded == ["p0.png", "p0x2.png"] * 2


def test_photos_of_equal_content_share_a_pair(tmp_path, decoded):
    source = _photos(tmp_path, 1)
    write_image(tmp_path / "photos/again.png", natural_image(70, 83))
    store = open_pairs([source], 2, 16, tmp_path / "cache", "stop")
    assert store.names == ["again.png", "p0.png"]
    assert decoded == ["again.png"]
    np.testing.assert_array_equal(store.hr[0], store.hr[1])


def test_downscale_first(tmp_path):
    _photos(tmp_path, 1)
    store = open_pairs([SourceOptions(hr=str(tmp_path / "photos"), downscale=2)], 2, 8, tmp_path / "cache", "stop")
    assert store.hr[0].shape == (34, 40, 3)


def test_lr_folder_is_used_and_checked(tmp_path):
    source = _photos(tmp_path, 2)
    lr = to_pixels(downscale_to_uint8(to_tensor(read_rgb(tmp_path / "photos/p0.png"))[:, :70, :82], 2)) // 2
    write_image(tmp_path / "lr/p0x2.png", lr)
    write_image(tmp_path / "lr/p1x2.png", lr[:-1])
    both = SourceOptions(hr=source.hr, lr=str(tmp_path / "lr"))
    with pytest.raises(UserError, match=r"p1x2\.png: 41x34 pixels, but .*p1\.png at scale 2 needs 41x35"):
        open_pairs([both], 2, 16, tmp_path / "cache", "stop")
    store = open_pairs([both], 2, 16, tmp_path / "cache", "skip")
    assert store.names == ["p0.png"]
    np.testing.assert_array_equal(store.lr[0], lr)


@pytest.mark.parametrize("change", ["mirrored", "upside down", "of others"])
def test_lr_of_other_pictures_is_refused(tmp_path, change):
    """Names and sizes fit, and the pictures do not."""
    photos = [to_tensor(read_rgb(path))[:, :240, :320] for path in embedded.training_photos()[:5]]
    small = [to_pixels(downscale_to_uint8(photo, 2)) for photo in photos]
    wrong = {
        "mirrored": [x[:, ::-1] for x in small],
        "upside down": [x[::-1] for x in small],
        "of others": small[1:] + small[:1],
    }
    source = SourceOptions(hr=str(tmp_path / "hr"), lr=str(tmp_path / "lr"))
    for name, lr in enumerate(small):
        write_image(tmp_path / f"hr/{name}.png", to_pixels(photos[name]))
        write_image(tmp_path / f"lr/{name}.png", lr // 2 + 20)  # darker and of less contrast: the same picture
    assert len(open_pairs([source], 2, 16, tmp_path / "cache", "stop").names) == 5
    for name, lr in enumerate(wrong[change]):
        write_image(tmp_path / f"lr/{name}.png", lr)
    with pytest.raises(UserError, match=r"lr: these LR images are not those of their HR photos"):
        open_pairs([source], 2, 16, tmp_path / "cache", "stop")


def test_files_that_are_no_images_are_counted_and_named(tmp_path):
    source = _photos(tmp_path, 2)
    for name in ("a.gif", "b.avif", ".hidden.txt"):
        (tmp_path / "photos" / name).touch()
    store = open_pairs([source], 2, 16, tmp_path / "cache", "stop")
    assert len(store.names) == 2
    assert len(store.skipped) == 1
    assert "2 file(s) there are not read as images (a.gif, b.avif)" in store.skipped[0]


def test_stored_images_that_were_damaged_are_made_anew(tmp_path, decoded):
    source = _photos(tmp_path, 2)
    store = open_pairs([source], 2, 16, tmp_path / "cache", "stop")
    before = [store.hr[index].copy() for index in range(2)]
    decoded.clear()
    (shard,) = (tmp_path / "cache/images").glob("*.bin")
    content = bytearray(shard.read_bytes())
    content[:5000] = bytes(5000)  # the size stays, and the index says nothing of it
    shard.write_bytes(content)
    store = open_pairs([source], 2, 16, tmp_path / "cache", "stop")
    for index in range(2):
        np.testing.assert_array_equal(store.hr[index], before[index])
    assert len(decoded) == 1


def test_a_damaged_memory_of_hashes_and_a_missing_shard_are_made_anew(tmp_path, decoded):
    source = _photos(tmp_path, 1)
    open_pairs([source], 2, 16, tmp_path / "cache", "stop")
    (tmp_path / "cache/hashes.json").write_text('{"half a li')
    (shard,) = (tmp_path / "cache/images").glob("*.bin")
    shard.unlink()
    assert open_pairs([source], 2, 16, tmp_path / "cache", "stop").hr[0].shape == (70, 82, 3)
    assert decoded == ["p0.png", "p0.png"]


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
    assert not (tmp_path / "cache/images").exists()


@pytest.mark.parametrize("size", [(2, 60), (1, 1)])
def test_a_photo_smaller_than_a_pixel_of_lr_is_named(tmp_path, size):
    source = _photos(tmp_path, 1)
    write_image(tmp_path / "photos/dot.png", natural_image(*size))
    for downscale in (1, 2):
        with pytest.raises(UserError, match=r"dot\.png: too small"):
            open_pairs([SourceOptions(hr=source.hr, downscale=downscale)], 4, 8, tmp_path / "cache", "stop")


def test_the_filter_by_size_follows_lr_size(tmp_path):
    source = _photos(tmp_path, 2)
    write_image(tmp_path / "photos/small.png", natural_image(40, 40))
    assert len(open_pairs([source], 2, 8, tmp_path / "cache", "stop").names) == 3
    store = open_pairs([source], 2, 24, tmp_path / "cache", "skip")
    assert store.names == ["p0.png", "p1.png"]
    assert store.skipped == [
        f"{tmp_path}/photos/small.png: too small: 40x40 pixels, but a crop needs 48x48 (data.lr_size 24 x scale 2)."
    ]
    with pytest.raises(UserError, match="too small: 40x40"):
        open_pairs([source], 2, 24, tmp_path / "cache", "stop")


def _index(cache):
    return next((cache / "images").glob("*.jsonl"))


def _cut_data(cache):
    shard = next((cache / "images").glob("*.bin"))
    shard.write_bytes(shard.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "made_anew"),
    [
        (_cut_data, ["p2.png"]),
        (lambda cache: next((cache / "images").glob("*.bin")).unlink(), ["p0.png", "p1.png", "p2.png"]),
        (lambda cache: _index(cache).unlink(), ["p0.png", "p1.png", "p2.png"]),
        (lambda cache: _index(cache).write_bytes(_index(cache).read_bytes()[:-1]), ["p2.png"]),
        (lambda cache: _index(cache).write_bytes(_index(cache).read_bytes().split(b"\n")[0] + b"\n\xff{"), ["p1.png", "p2.png"]),
        (lambda cache: _index(cache).write_text('[]\n{}\n3\n{"key": "x", "offset": 0, "shapes": [[1]]}\n'), ["p0.png", "p1.png", "p2.png"]),
    ],
    ids=["data cut off", "data gone", "index gone", "line cut off", "line damaged", "no index at all"],
)  # fmt: skip
def test_a_damaged_cache_is_made_anew(tmp_path, decoded, damage, made_anew):
    source, cache = _photos(tmp_path), tmp_path / "cache"
    open_pairs([source], 2, 16, cache, "stop")
    damage(cache)
    decoded.clear()
    store = open_pairs([source], 2, 16, cache, "stop")
    assert decoded == made_anew
    for index in range(3):
        np.testing.assert_array_equal(
            store.hr[index], natural_image(70 + index, 83, seed=index)[:72, :82][: 70 + index // 2 * 2]
        )


def test_an_index_with_impossible_places_does_not_count(tmp_path, decoded):
    source, cache = _photos(tmp_path, 1), tmp_path / "cache"
    open_pairs([source], 2, 16, cache, "stop")
    line = json.loads(_index(cache).read_text())
    for change in (
        {"offset": -1},
        {"offset": 10**9},
        {"shapes": line["shapes"][:1]},
        {"shapes": [[-35, -41], [70, 82]]},
    ):
        _index(cache).write_text(json.dumps(line | change) + "\n")
        for shard in (cache / "images").glob("*.jsonl"):
            shard.write_text(json.dumps(line | change) + "\n")
        decoded.clear()
        open_pairs([source], 2, 16, cache, "stop")
        assert decoded == ["p0.png"]


def test_a_cache_folder_that_is_a_file_is_a_sentence(tmp_path):
    source = _photos(tmp_path, 1)
    (tmp_path / "cache").write_text("text")
    with pytest.raises(UserError, match="cannot write to .*cache/images: .*data.cache_dir"):
        open_pairs([source], 2, 16, tmp_path / "cache", "stop")


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_the_cache_has_the_usual_permissions(tmp_path):
    source, before = _photos(tmp_path, 1), os.umask(0o027)
    try:
        store = open_pairs([source], 2, 16, tmp_path / "cache", "stop")
        store.add_teacher("teacher", "x", _repeated(2))
    finally:
        os.umask(before)
    for path in (tmp_path / "cache").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o750 if path.is_dir() else 0o640)


class _LimitedFiles:
    """Files cannot grow beyond this size while it lasts, as on a disk that is full."""

    def __init__(self, size):
        self.size = size

    def __enter__(self):
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.before[1]))

    def __exit__(self, *error):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


def test_a_full_disk_is_a_sentence_and_what_was_stored_stays(tmp_path, decoded):
    source, cache = _photos(tmp_path), tmp_path / "cache"
    with (
        pytest.raises(UserError, match="cannot write to .*images: File too large.* before stays"),
        _LimitedFiles(50_000),
    ):
        open_pairs([source], 2, 16, cache, "stop")
    decoded.clear()
    store = open_pairs([source], 2, 16, cache, "stop")
    assert decoded == ["p2.png"]  # a pair has about 21,000 bytes
    upscaled = []
    with pytest.raises(UserError, match="cannot write to .*teacher_x"), _LimitedFiles(40_000):
        store.add_teacher("teacher", "x", _repeated(2, upscaled))
    upscaled.clear()
    store.add_teacher("teacher", "x", _repeated(2, upscaled))
    assert len(upscaled) == 1


def test_an_interrupted_pass_goes_on_where_it_was(tmp_path, monkeypatch, decoded):
    source, cache, upscaled = _photos(tmp_path, 5), tmp_path / "cache", []

    def read(path):
        if len(decoded) == 3:
            raise KeyboardInterrupt
        decoded.append(path.name)
        return read_rgb(path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(packed, "read_rgb", read)
        open_pairs([source], 2, 16, cache, "stop")
    store = open_pairs([source], 2, 16, cache, "stop")
    assert decoded == [f"p{index}.png" for index in range(5)]

    def interrupted(lr):
        if len(upscaled) == 2:
            raise KeyboardInterrupt
        return _repeated(2, upscaled)(lr)

    with pytest.raises(KeyboardInterrupt):
        store.add_teacher("teacher", "x", interrupted)
    store.add_teacher("teacher", "x", _repeated(2, upscaled))
    assert [shape[-2] for shape in upscaled] == [35, 35, 36, 36, 37]
    for index in range(5):
        expected = store.lr[index].repeat(2, 0).repeat(2, 1)
        np.testing.assert_array_equal(store.teachers["teacher"][index], expected)


def test_an_image_is_in_the_index_as_soon_as_it_is_stored(tmp_path):
    """A process that is killed, or another one that reads meanwhile, finds all that was made before."""
    pack, seen = packs.Pack(tmp_path / "pack"), []

    def make(index):
        seen.append(list(pack.entries()))
        return [natural_image(4, 5)]

    pack.fill(["a", "b", "c"], make)
    assert seen == [[], ["a"], ["a", "b"]]


def test_a_teacher_runs_for_new_images_only(tmp_path):
    source, cache, upscaled = _photos(tmp_path), tmp_path / "cache", []

    def opened(lr_size):
        store = open_pairs([source], 2, lr_size, cache, "stop")
        store.add_teacher("teacher", "x", _repeated(2, upscaled))
        return store

    opened(16)
    assert len(upscaled) == 3
    opened(8)
    write_image(tmp_path / "photos/a.png", natural_image(60, 64, seed=7))
    store = opened(16)
    assert [tuple(shape) for shape in upscaled[3:]] == [(3, 30, 32)]
    np.testing.assert_array_equal(store.teachers["teacher"][0], store.lr[0].repeat(2, 0).repeat(2, 1))
    store.add_teacher("other", "y", lambda lr: _repeated(2, upscaled)(255 - lr))
    assert len(upscaled) == 8
    np.testing.assert_array_equal(store.teachers["other"][0], 255 - store.teachers["teacher"][0])


def test_the_name_of_a_teachers_outputs_says_how_they_were_made(tmp_path):
    store = open_pairs([_photos(tmp_path, 1)], 2, 8, tmp_path / "cache", "stop")
    store.add_teacher("teacher", "x", _repeated(2))
    folders = [path.name for path in (tmp_path / "cache").glob("teacher_*")]
    assert folders == [f"teacher_x_fp32_{packed._TEACHER_FORMAT}"]


def test_outputs_in_tiles_are_kept_apart_from_whole_ones(tmp_path):
    store = open_pairs([_photos(tmp_path)], 2, 8, tmp_path / "cache", "stop")
    tiled = []

    def small_only(lr):
        if lr.shape[-2] > 35:
            raise MemoryError
        return _repeated(2)(lr)

    def in_tiles():
        return "in tiles of 8", lambda lr: 255 - _repeated(2, tiled)(lr)

    with pytest.raises(MemoryError):
        store.add_teacher("teacher", "x", small_only)
    for _ in range(2):  # the second time those in tiles are there
        assert store.add_teacher("teacher", "x", small_only, in_tiles=in_tiles) == 1
    assert len(tiled) == 1
    np.testing.assert_array_equal(store.teachers["teacher"][1], store.lr[1].repeat(2, 0).repeat(2, 1))
    np.testing.assert_array_equal(store.teachers["teacher"][2], 255 - store.lr[2].repeat(2, 0).repeat(2, 1))
    assert store.add_teacher("teacher", "x", _repeated(2), in_tiles=in_tiles) == 0  # where there is more memory
    np.testing.assert_array_equal(store.teachers["teacher"][2], store.lr[2].repeat(2, 0).repeat(2, 1))


def test_unchanged_files_are_not_hashed_again(tmp_path, monkeypatch):
    source, cache, read = _photos(tmp_path), tmp_path / "cache", []
    for path in (tmp_path / "photos").iterdir():
        os.utime(path, (1e9, 1e9))
    original = type(tmp_path).read_bytes
    monkeypatch.setattr(type(tmp_path), "read_bytes", lambda path: read.append(path.name) or original(path))
    first = open_pairs([source], 2, 16, cache, "stop")
    assert sorted(read) == ["p0.png", "p1.png", "p2.png"]
    os.utime(tmp_path / "photos/p1.png", (1e9, 1e9 + 1))
    again = open_pairs([source], 2, 16, cache, "stop")
    assert read[3:] == ["p1.png"]
    np.testing.assert_array_equal(first.hr[1], again.hr[1])
    for content in ("text", "[]", "", json.dumps({str(tmp_path / "photos/p1.png"): 3})):
        (cache / "hashes.json").write_text(content)
        read.clear()
        open_pairs([source], 2, 16, cache, "stop")
        assert len(read) == 3


def test_a_file_that_may_change_within_a_tick_is_not_remembered(tmp_path):
    file, hashes = tmp_path / "file", FileHashes(tmp_path / "hashes.json")
    file.write_text("one")
    first = hashes.of(file)
    hashes.save()
    stamp = file.stat().st_mtime_ns
    file.write_text("two")
    os.utime(file, ns=(stamp, stamp))
    assert FileHashes(tmp_path / "hashes.json").of(file) != first


def test_hashes_of_two_processes_are_merged(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(name)
        os.utime(tmp_path / name, (1e9, 1e9))
    both = [FileHashes(tmp_path / "hashes.json") for _ in range(2)]
    for name, hashes in zip("ab", both):
        hashes.of(tmp_path / name)
    for hashes in both:
        hashes.save()
    assert len(json.loads((tmp_path / "hashes.json").read_text())) == 2


def _repeated(scale, seen=None):
    """A teacher that repeats pixels; ``seen`` gets the shapes of what it saw."""

    def upscale(lr):
        if seen is not None:
            seen.append(lr.shape)
        return lr.repeat_interleave(scale, 1).repeat_interleave(scale, 2)

    return upscale


@pytest.fixture
def store(tmp_path):
    store = open_pairs([_photos(tmp_path)], 4, 8, tmp_path / "cache", "stop")
    store.add_teacher("teacher", "x", _repeated(4))
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


def test_a_store_is_pickled_without_its_bytes(tmp_path):
    for index in range(3):
        write_image(tmp_path / "photos" / f"p{index}.png", natural_image(600, 900, seed=index))
    store = open_pairs([SourceOptions(hr=str(tmp_path / "photos"))], 2, 16, tmp_path / "cache", "stop")
    store.add_teacher("teacher", "x", _repeated(2))
    assert sum(image.nbytes for image in store.hr) > 4e6  # and the maps are open
    pickled = pickle.dumps(store)
    assert len(pickled) < 20_000
    np.testing.assert_array_equal(pickle.loads(pickled).teachers["teacher"][2], store.teachers["teacher"][2])


def test_workers_that_are_spawned_give_the_same_batches(store):
    batches = StepBatches(store, 8, 4, seed=1)
    loader = DataLoader(batches, sampler=range(2), batch_size=None, num_workers=2, multiprocessing_context="spawn")
    for step, batch in enumerate(loader):
        assert torch.equal(batch.hr, batches[step].hr)
        assert torch.equal(batch.teacher_sr["teacher"], batches[step].teacher_sr["teacher"])


def test_many_photos_need_few_open_files(tmp_path):
    for index in range(40):
        write_image(tmp_path / "photos" / f"p{index}.png", natural_image(16, 16, seed=index))
    store = open_pairs([SourceOptions(hr=str(tmp_path / "photos"))], 2, 8, tmp_path / "cache", "stop")
    assert len(store.names) == len({image.tobytes() for image in store.hr}) == 40
    assert len(store.hr._maps) == 1


def test_pinned_batches(store, monkeypatch):
    batch, pinned = StepBatches(store, 8, 4, seed=1)[0], []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda image: pinned.append(image) or image.clone())
    got = batch.pin_memory()
    assert len(pinned) == 3
    assert torch.equal(got.hr, batch.hr)
    assert got.teacher_sr.keys() == {"teacher"}
    assert step_loader(StepBatches(store, 8, 4, seed=1), 0, 1, 0, pin_memory=True).pin_memory
    assert not step_loader(StepBatches(store, 8, 4, seed=1), 0, 1, 0).pin_memory


def test_batch_to_float():
    batch = Batch(torch.tensor([[[[255]]]], dtype=torch.uint8), torch.zeros(1, 1, 2, 2, dtype=torch.uint8)).to(
        torch.device("cpu")
    )
    assert batch.lr.item() == 1.0
    assert batch.hr.dtype == torch.float32
    assert batch.teacher_sr == {}


def test_work_of_several_processes_ends_together(monkeypatch):
    """What another process failed at is an error here, and an own failure goes on as it is, after the others know."""
    others, sent = [], []
    monkeypatch.setattr(devices, "gathered", lambda items: sent.append(items[0]) or [*items, *others])
    assert devices.together(lambda: 3) == [3]
    others.append((None, "the disk is full"))
    with pytest.raises(UserError, match="the disk is full"):
        devices.together(lambda: 3)
    with pytest.raises(ZeroDivisionError):
        devices.together(lambda: 1 / 0)
    assert sent[-1] == (None, "division by zero")
