"""TIFFs in and out, beside other readers and writers."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import pytest
import skimage.io
import tifffile
from PIL import Image

from sr_distill.errors import UserError
from sr_distill.infer import open_picture, write_picture
from sr_distill.infer.metadata import Metadata
from sr_distill.infer.write import check

from ..conftest import natural_image
from .pictures import PHOTO, PROFILE, saved, written

RNG = np.random.default_rng(0)
TURNS = {2: np.fliplr, 3: lambda p: np.rot90(p, 2), 4: np.flipud, 5: lambda p: p.swapaxes(0, 1), 6: lambda p: np.rot90(p, -1),
         7: lambda p: np.rot90(p.swapaxes(0, 1), 2), 8: np.rot90}  # fmt: skip


def _tiff(pixels, **settings):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, metadata=None, **settings)
    return buffer.getvalue()


def _deep(*shape):
    return RNG.integers(0, 65536, shape, dtype=np.uint16)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_as_others_read_it(tmp_path, channels, dtype):
    pixels = RNG.integers(0, np.iinfo(dtype).max, (150, 33, channels), dtype=dtype, endpoint=True)
    file = tmp_path / "a.tif"
    file.write_bytes(written(pixels, "tiff", Metadata(icc=PROFILE, dpi=(300.0, 150.0))))
    np.testing.assert_array_equal(tifffile.imread(file), pixels.squeeze())
    np.testing.assert_array_equal(skimage.io.imread(file), pixels.squeeze())
    picture = open_picture(file)
    np.testing.assert_array_equal(picture.rows.whole(), pixels)
    assert (picture.metadata.icc, picture.metadata.dpi) == (PROFILE, (300.0, 150.0))
    if channels in (1, 3):
        np.testing.assert_array_equal(
            cv2.imread(str(file), cv2.IMREAD_UNCHANGED).reshape(pixels.shape)[:, :, ::-1], pixels
        )


def test_a_later_page_that_is_too_large_is_refused():
    pages = [Image.new("L", (4, 4)), Image.new("L", (300, 300))]
    with pytest.raises(UserError, match="300x300 are 0 megapixels, and at most 0.05"):
        open_picture(saved(pages[0], "TIFF", save_all=True, append_images=pages[1:]), 0.05)


def test_pages_of_a_tiff():
    pages = [PHOTO.rotate(angle) for angle in (0, 30)]
    picture = open_picture(saved(pages[0], "TIFF", save_all=True, append_images=pages[1:]))
    assert not picture.is_animated
    buffer = io.BytesIO()
    write_picture(buffer, picture, "tiff")
    buffer.seek(0)
    for index, page in enumerate(tifffile.TiffFile(buffer).pages):
        np.testing.assert_array_equal(page.asarray(), np.asarray(pages[index]))
    with pytest.raises(UserError, match="it has 2 pages, which only TIFF holds"):
        check(picture, (24, 34), "png")


@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "zstd", "packbits"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bits_in_the_compressions_that_programs_write(channels, compression):
    pixels = _deep(20, 30, channels)
    extra = {"extrasamples": ["unassalpha"]} if channels in (2, 4) else {}
    photometric = "rgb" if channels > 2 else "minisblack"
    data = _tiff(pixels.squeeze(), photometric=photometric, compression=compression, **extra)
    np.testing.assert_array_equal(open_picture(data).rows.whole(), pixels)


@pytest.mark.parametrize("channels", [3, 4])
def test_16_bits_as_opencv_writes_them(tmp_path, channels):
    pixels, file = _deep(20, 30, channels), tmp_path / "a.tif"
    cv2.imwrite(str(file), pixels[:, :, [2, 1, 0, 3][:channels]])
    np.testing.assert_array_equal(open_picture(file).rows.whole(), pixels)


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("orientation", TURNS)
def test_16_bits_are_turned_as_they_say(orientation, channels):
    pixels = _deep(20, 30, channels)
    data = _tiff(
        pixels.squeeze(), photometric="rgb" if channels == 3 else "minisblack", extratags=[(274, 3, 1, orientation, True)],
        **({"extrasamples": ["unassalpha"]} if channels == 2 else {}),
    )  # fmt: skip
    np.testing.assert_array_equal(open_picture(data).rows.whole(), TURNS[orientation](pixels))


@pytest.mark.parametrize("channels", [1, 2])
def test_zero_may_be_white(channels):
    pixels = _deep(20, 30, channels)
    extra = {"extrasamples": ["unassalpha"]} if channels == 2 else {}
    found = open_picture(_tiff(pixels.squeeze(), photometric="miniswhite", **extra)).rows.whole()
    np.testing.assert_array_equal(found[:, :, 0], 65535 - pixels[:, :, 0])
    np.testing.assert_array_equal(found[:, :, 1:], pixels[:, :, 1:])


def test_colours_that_were_multiplied_by_alpha_are_divided_by_it():
    color = np.array([[[65535, 1000, 0], [600, 300, 65535]]], np.uint16)
    alpha = np.array([[[32768], [0]]], np.uint16)
    multiplied = np.rint(color * (alpha / 65535)).astype(np.uint16)
    data = _tiff(np.concatenate([multiplied, alpha], axis=2), photometric="rgb", extrasamples=["assocalpha"])
    found = open_picture(data).rows.whole()
    assert np.abs(found[0, 0, :3].astype(int) - color[0, 0]).max() <= 1
    assert found[0, :, 3].tolist() == [32768, 0]
    # The reader of 8 bits is Pillow's.
    eight = _tiff(np.array([[[128, 64, 0, 128]]], np.uint8), photometric="rgb", extrasamples=["assocalpha"])
    sixteen = _tiff(np.array([[[128, 64, 0, 128]]], np.uint16) * 257, photometric="rgb", extrasamples=["assocalpha"])
    assert (open_picture(sixteen).rows.whole() // 257).tolist() == open_picture(eight).rows.whole().tolist()


def test_channels_without_a_meaning_are_left_out():
    pixels = _deep(20, 30, 4)
    data = _tiff(pixels, photometric="rgb", extrasamples=["unspecified"])
    np.testing.assert_array_equal(open_picture(data).rows.whole(), pixels[:, :, :3])


@pytest.mark.parametrize("extra", ["unassalpha", "assocalpha"])
def test_of_the_channels_beside_gray_the_first_is_alpha(extra):
    pixels = np.concatenate([_deep(20, 30, 1) // 2, np.full((20, 30, 1), 65535, np.uint16), _deep(20, 30, 1)], axis=2)
    data = _tiff(pixels, photometric="minisblack", planarconfig="contig", extrasamples=[extra, "unspecified"])
    np.testing.assert_array_equal(open_picture(data).rows.whole(), pixels[:, :, :2])


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_fewer_bits_than_16_reach_as_far(bits):
    pixels = RNG.integers(0, 2**bits, (20, 30, 3), dtype=np.uint16)
    packed = b"".join(imagecodecs.packints_encode(row.ravel(), bits) for row in pixels)
    with tempfile.NamedTemporaryFile(suffix=".tif") as file:
        with tifffile.TiffWriter(file.name) as tiff:
            tiff.write(
                iter([packed]), shape=pixels.shape, dtype=np.uint16, bitspersample=bits, photometric="rgb", rowsperstrip=20,
                metadata=None,
            )  # fmt: skip
        found = open_picture(Path(file.name)).rows.whole()
    np.testing.assert_array_equal(found, np.rint(pixels * (65535 / (2**bits - 1))))


def test_xmp_that_is_called_a_text():
    data = _tiff(
        _deep(20, 30, 2),
        photometric="minisblack",
        extrasamples=["unassalpha"],
        extratags=[(700, 2, None, "<x/>", True)],
    )
    assert open_picture(data).metadata.xmp.rstrip(b"\0") == b"<x/>"


def test_cmyk_of_16_bits_is_read_as_that_of_8():
    cmyk = np.asarray(PHOTO.convert("CMYK"))
    eight, sixteen = (
        open_picture(_tiff(each, photometric="separated")) for each in (cmyk, cmyk.astype(np.uint16) * 257)
    )
    np.testing.assert_array_equal(sixteen.rows.whole(), eight.rows.whole())
    assert sixteen.rows.dtype == np.uint8
    assert (eight.notes, sixteen.notes) == ((), ("of its 16 bits 8 are read.",))
    pages = io.BytesIO()
    with tifffile.TiffWriter(pages) as tiff:
        for _ in range(2):
            tiff.write(cmyk.astype(np.uint16) * 257, photometric="separated", metadata=None)
    both = open_picture(pages.getvalue())
    assert both.notes == sixteen.notes
    for frame in both.frames:
        np.testing.assert_array_equal(frame.rows.whole(), eight.rows.whole())


def test_lab_of_16_bits_is_refused():
    with pytest.raises(UserError, match="its colours are CIELAB of 16 bits, which is not read: save it as RGB"):
        open_picture(_tiff(_deep(9, 9, 3), photometric="cielab"))


def test_xmp_is_kept():
    xmp = b'<x:xmpmeta><rdf:Description tiff:Make="m"/></x:xmpmeta>'
    data = written(_deep(9, 9, 2), "tiff", Metadata(xmp=xmp))  # which Pillow does not know
    assert tifffile.TiffFile(io.BytesIO(data)).pages[0].tags[700].value == xmp
    assert open_picture(data).metadata.xmp == xmp
    assert open_picture(written(natural_image(9, 9), "tiff", Metadata(xmp=xmp))).metadata.xmp == xmp
