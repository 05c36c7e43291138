"""Pairs of LR and HR: what they are made of, and which photos are refused."""

from __future__ import annotations

import numpy as np
import pytest

from sr_distill.data import downscale_to_uint8, embedded, open_pairs
from sr_distill.data.images import read_rgb, to_pixels, to_tensor
from sr_distill.errors import UserError
from sr_distill.models.basicsr import import_basicsr
from sr_distill.options.sections import SourceOptions

from ..conftest import natural_image, write_image
from .conftest import photos


def test_pairs_equal_matlab_like_bicubic(tmp_path):
    store = open_pairs([photos(tmp_path)], 3, 16, tmp_path / "cache", "stop")
    assert store.names == ["p0.png", "p1.png", "p2.png"]
    hr = natural_image(70, 83)[:69, :81]
    np.testing.assert_array_equal(store.hr[0], hr)
    expected = import_basicsr("utils.matlab_functions").imresize(to_tensor(hr).double().float() / 255, 1 / 3)
    assert (
        np.abs(store.lr[0].transpose(2, 0, 1).astype(int) - expected.mul(255).clamp(0, 255).round().numpy()).max() <= 1
    )


def test_photos_of_equal_content_share_a_pair(tmp_path, decoded):
    source = photos(tmp_path, 1)
    write_image(tmp_path / "photos/again.png", natural_image(70, 83))
    store = open_pairs([source], 2, 16, tmp_path / "cache", "stop")
    assert store.names == ["again.png", "p0.png"]
    assert decoded == ["again.png"]
    np.testing.assert_array_equal(store.hr[0], store.hr[1])


def test_downscale_first(tmp_path):
    photos(tmp_path, 1)
    store = open_pairs([SourceOptions(hr=str(tmp_path / "photos"), downscale=2)], 2, 8, tmp_path / "cache", "stop")
    assert store.hr[0].shape == (34, 40, 3)


def test_lr_folder_is_used_and_checked(tmp_path):
    source = photos(tmp_path, 2)
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


def test_unusable_photos_stop_or_are_skipped_by_name(tmp_path):
    source = photos(tmp_path, 2)
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
    source = photos(tmp_path, 1)
    write_image(tmp_path / "photos/dot.png", natural_image(*size))
    for downscale in (1, 2):
        with pytest.raises(UserError, match=r"dot\.png: too small"):
            open_pairs([SourceOptions(hr=source.hr, downscale=downscale)], 4, 8, tmp_path / "cache", "stop")


def test_the_filter_by_size_follows_lr_size(tmp_path):
    source = photos(tmp_path, 2)
    write_image(tmp_path / "photos/small.png", natural_image(40, 40))
    assert len(open_pairs([source], 2, 8, tmp_path / "cache", "stop").names) == 3
    store = open_pairs([source], 2, 24, tmp_path / "cache", "skip")
    assert store.names == ["p0.png", "p1.png"]
    assert store.skipped == [
        f"{tmp_path}/photos/small.png: too small: 40x40 pixels, but a crop needs 48x48 (data.lr_size 24 x scale 2)."
    ]
    with pytest.raises(UserError, match="too small: 40x40"):
        open_pairs([source], 2, 24, tmp_path / "cache", "stop")
