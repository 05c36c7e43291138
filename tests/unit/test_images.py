"""Image files: what is read, what is refused, what is written."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from sr_distill.data import embedded
from sr_distill.data.images import list_images, open_image, read_rgb, to_rgb, to_uint8, write_png
from sr_distill.errors import UserError

from ..conftest import natural_image, write_image


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
