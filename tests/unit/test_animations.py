"""Animations in and out: frames, timing, and what they say of themselves."""

from __future__ import annotations

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps, PngImagePlugin

from sr_distill.errors import UserError
from sr_distill.infer import open_picture, write_picture
from sr_distill.infer.write import check

from ..conftest import natural_image
from .pictures import PHOTO, saved


def _animation(kind, **settings):
    frames = [PHOTO.rotate(angle).convert("P" if kind == "GIF" else "RGB") for angle in (0, 30, 60)]
    return saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=[50, 100, 250], **settings)


@pytest.mark.parametrize("source", ["GIF", "WEBP", "PNG"])
@pytest.mark.parametrize("target", ["gif", "webp", "png", "avif"])
def test_animations_keep_their_frames_and_their_timing(source, target):
    picture = open_picture(_animation(source, loop=3))
    assert picture.is_animated
    buffer = io.BytesIO()
    write_picture(buffer, picture, target)
    with Image.open(buffer) as result:
        assert result.n_frames == 3
        times = [(result.seek(index), result.load(), result.info["duration"])[2] for index in range(3)]
    assert times == pytest.approx([50, 100, 250])
    if target != "avif":
        assert open_picture(buffer.getvalue()).loop == 3
    for before, after in zip(picture.frames, open_picture(buffer.getvalue()).frames):
        assert (
            np.abs(before.rows.whole()[:, :, :3].astype(int) - after.rows.whole()[:, :, :3]).mean() < 16
        )  # palettes are coarse


def test_what_an_animation_shows_where_it_is_not_known_is_no_frame_of_it():
    frames = [Image.new("RGB", (8, 6), color) for color in ("red", "green", "blue")]
    still, *moving = frames
    picture = open_picture(
        saved(still, "PNG", save_all=True, append_images=moving, duration=[100, 200], default_image=True)
    )
    assert [frame.duration for frame in picture.frames] == [100, 200]
    assert [tuple(frame.rows.whole()[0, 0, :3]) for frame in picture.frames] == [(0, 128, 0), (0, 0, 255)]


@pytest.mark.parametrize("kind", ["WEBP", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_animation_is_turned_as_it_says(kind, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    more = {"lossless": True} if kind == "WEBP" else {}
    frames = [PHOTO, PHOTO.rotate(30)]
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, exif=exif.tobytes(), **more)
    picture = open_picture(data)
    for frame, source in zip(picture.frames, frames):
        source.getexif()[ExifTags.Base.Orientation] = orientation
        expected = ImageOps.exif_transpose(source)
        np.testing.assert_array_equal(frame.rows.whole()[:, :, :3], np.asarray(expected))
        source.getexif().pop(ExifTags.Base.Orientation)
    assert len(picture.frames) == 2


def test_an_animation_is_refused_where_there_is_none():
    with pytest.raises(UserError, match="an animation of 3 frames, which jpg does not hold"):
        check(open_picture(_animation("GIF")), (2, 2), "jpg")


def test_texts_xmp_and_colour_chunks_of_an_animated_png_are_kept():
    described = PngImagePlugin.PngInfo()
    described.add_text("Author", "Ä person")
    described.add_itxt("XML:com.adobe.xmp", "<x:xmpmeta/>")
    described.add(b"gAMA", struct.pack(">I", 100000))
    buffer = io.BytesIO()
    write_picture(buffer, open_picture(_animation("PNG", pnginfo=described)), "png")
    with Image.open(buffer) as result:
        assert result.n_frames == 3
        assert result.info["gamma"] == 1.0
        assert (result.text["Author"], result.info["xmp"]) == ("Ä person", b"<x:xmpmeta/>")


def test_an_animation_of_16_bits_is_read_with_8_which_is_said():
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    def control(number):
        return chunk(b"fcTL", struct.pack(">IIIIIHHBB", number, 34, 24, 0, 0, 50, 1000, 0, 0))

    photo = natural_image(24, 34)
    still = cv2.imencode(".png", photo[:, :, ::-1].astype(np.uint16) * 257)[1].tobytes()
    start = still.index(b"IDAT")
    body = still[start + 4 : start + 4 + struct.unpack(">I", still[start - 4 : start])[0]]
    frames = [control(0), chunk(b"IDAT", body), control(1), chunk(b"fdAT", struct.pack(">I", 2) + body)]
    content = [still[:33], chunk(b"acTL", struct.pack(">II", 2, 0)), *frames, chunk(b"IEND", b"")]
    picture = open_picture(b"".join(content))
    assert picture.notes == ("of its 16 bits 8 are read.",)
    assert [frame.duration for frame in picture.frames] == [50, 50]
    for frame in picture.frames:
        np.testing.assert_array_equal(frame.rows.whole()[:, :, :3], photo)
