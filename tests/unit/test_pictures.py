"""Image files in and out: what is in them stays in them."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib

import cv2
import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image, ImageCms, PngImagePlugin

from sr_distill.errors import UserError
from sr_distill.infer import FORMATS, open_picture, picture_of, to_image, write_picture
from sr_distill.infer.metadata import Metadata
from sr_distill.infer.picture import Frame, Picture
from sr_distill.infer.rows import rows_of
from sr_distill.infer.write import check, format_of

from ..conftest import natural_image
from .pictures import PHOTO, PROFILE, saved, written

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("mode", "channels", "dtype"),
    [("RGB", 3, "uint8"), ("L", 1, "uint8"), ("1", 1, "uint8"), ("P", 3, "uint8"), ("RGBA", 4, "uint8"), ("LA", 2, "uint8"),
     ("CMYK", 3, "uint8"), ("I;16", 1, "uint16"), ("F", 1, "uint16"), ("LAB", 3, "uint8"), ("YCbCr", 3, "uint8")],
)  # fmt: skip
def test_modes(mode, channels, dtype):
    if mode == "I;16":
        image = Image.fromarray(RNG.integers(0, 65536, (24, 34), dtype=np.uint16))
    elif mode == "F":
        image = Image.fromarray(RNG.random((24, 34), dtype=np.float32))
    elif mode == "LAB":
        image = ImageCms.profileToProfile(
            PHOTO, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
        )
    else:
        image = PHOTO.convert(mode)
    kind = "TIFF" if mode in ("CMYK", "F", "LAB") else "PNG"
    # Some versions of Pillow write a TIFF of YCbCr that they cannot read.
    rows = picture_of(image).rows if mode == "YCbCr" else open_picture(saved(image, kind)).rows
    assert (rows.height, rows.width, rows.channels, rows.dtype) == (24, 34, channels, np.dtype(dtype))
    pixels = rows.whole()
    if mode == "I;16":
        np.testing.assert_array_equal(pixels[:, :, 0], np.asarray(image))
    elif mode == "F":
        np.testing.assert_allclose(pixels[:, :, 0] / 65535, np.asarray(image), atol=1e-5)
    elif mode in ("RGB", "L", "RGBA", "LA"):
        np.testing.assert_array_equal(pixels.squeeze(), np.asarray(image))
    elif mode == "LAB":
        assert np.abs(pixels.astype(int) - np.asarray(PHOTO)).mean() < 3
    else:
        np.testing.assert_array_equal(pixels.squeeze(), np.asarray(image.convert("L" if mode == "1" else "RGB")))


def test_transparent_palettes_and_colours():
    palette = PHOTO.convert("P")
    palette.info["transparency"] = palette.getpixel((0, 0))
    pixels = open_picture(saved(palette, "PNG", transparency=palette.getpixel((0, 0)))).rows.whole()
    assert pixels.shape[2] == 4
    assert pixels[0, 0, 3] == 0
    keyed = open_picture(saved(PHOTO, "PNG", transparency=PHOTO.getpixel((0, 0)))).rows.whole()
    assert keyed.shape[2] == 4
    assert keyed[0, 0, 3] == 0
    assert keyed[:, :, 3].max() == 255


@pytest.mark.parametrize("channels", [3, 4])
def test_png_of_16_bits_as_opencv_writes_it(tmp_path, channels):
    pixels = RNG.integers(0, 65536, (20, 30, channels), dtype=np.uint16)
    file = tmp_path / "a.png"
    cv2.imwrite(str(file), pixels[:, :, [2, 1, 0, 3][:channels]])
    np.testing.assert_array_equal(open_picture(file).rows.whole(), pixels)


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("codec", ["jp2", "j2k"])
def test_jpeg_2000_of_any_depth(bits, channels, codec):
    pixels = RNG.integers(0, 2**bits, (40, 50, channels), dtype=np.uint16 if bits > 8 else np.uint8)
    content = imagecodecs.jpeg2k_encode(pixels.squeeze(), bitspersample=bits, codecformat=codec, reversible=True)
    found = open_picture(content).rows.whole()
    assert found.dtype == pixels.dtype
    np.testing.assert_array_equal(found, np.rint(pixels * (np.iinfo(pixels.dtype).max / (2**bits - 1))))


def test_inks_of_a_jpeg_2000_are_no_colours_with_alpha():
    inks = np.asarray(PHOTO.convert("CMYK")).astype(np.uint16) * 257
    content = imagecodecs.jpeg2k_encode(
        inks, codecformat="jp2", colorspace=imagecodecs.JPEG2K.CLRSPC.CMYK, reversible=True
    )
    with Image.open(io.BytesIO(content)) as image:
        assert image.mode == "CMYK"
    found = open_picture(content).rows
    assert (found.channels, found.dtype) == (3, np.uint8)
    assert open_picture(content).notes == ("of its 16 bits 8 are read.",)
    assert np.abs(found.whole().astype(int) - np.asarray(PHOTO.convert("CMYK").convert("RGB"))).max() <= 1


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("size", [(1, 1), (1, 50), (130, 1), (131, 77)])
def test_png_as_others_read_it(channels, dtype, size):
    pixels = RNG.integers(0, np.iinfo(dtype).max, (*size, channels), dtype=dtype, endpoint=True)
    if size == (131, 77):  # smooth, so that every filter is the best somewhere
        pixels = (np.cumsum(pixels % 3, axis=1) + np.cumsum(pixels % 2, axis=0)).astype(dtype)
    data = written(pixels, "png")
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if channels == 1:
        np.testing.assert_array_equal(found, pixels[:, :, 0])
    elif channels >= 3:
        np.testing.assert_array_equal(found[:, :, [2, 1, 0, 3][:channels]], pixels)
    Image.open(io.BytesIO(data)).verify()
    np.testing.assert_array_equal(open_picture(data).rows.whole(), pixels)


def test_png_is_about_as_small_as_libpngs():
    photo = natural_image(300, 400)
    assert len(written(photo, "png")) < 1.05 * len(saved(Image.fromarray(photo), "PNG", compress_level=2))


def _exif(**tags):
    exif = Image.Exif()
    exif[0x010F] = "A camera"
    exif.get_ifd(0x8769)[0x9003] = "2020:02:02 02:02:02"
    exif.get_ifd(0x8769)[0xA002] = 34
    exif[0x0112] = 6
    return exif


@pytest.mark.parametrize("source", ["JPEG", "PNG", "WEBP", "AVIF"])
@pytest.mark.parametrize("target", ["png", "jpg", "webp", "avif"])
def test_profile_exif_and_resolution_are_kept(source, target):
    picture = open_picture(saved(PHOTO, source, exif=_exif(), icc_profile=PROFILE, dpi=(300, 300), xmp=b"<x:xmpmeta/>"))
    assert (picture.rows.height, picture.rows.width) == (34, 24)  # turned
    buffer = io.BytesIO()
    write_picture(buffer, picture, target)
    with Image.open(buffer) as result:
        assert result.size == (24, 34)
        assert result.info["icc_profile"] == PROFILE
        exif = result.getexif()
        assert exif[0x010F] == "A camera"
        assert 0x0112 not in exif
        assert exif.get_ifd(0x8769)[0x9003] == "2020:02:02 02:02:02"
        assert 0xA002 not in exif.get_ifd(0x8769)
        if source in ("JPEG", "PNG") and target in ("png", "jpg"):
            assert result.info["dpi"] == pytest.approx((300, 300), abs=0.01)
        if source != "PNG":
            assert b"xmpmeta" in result.info["xmp"]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("deep", [False, True])
def test_every_orientation(tmp_path, orientation, deep):
    exif = Image.Exif()
    exif[0x0112] = orientation
    if deep:
        pixels = RNG.integers(0, 65536, (5, 7, 3), dtype=np.uint16)
        plain = cv2.imencode(".png", pixels[:, :, ::-1])[1].tobytes()
        body = exif.tobytes().removeprefix(b"Exif\0\0")
        chunk = struct.pack(">I4s", len(body), b"eXIf") + body + struct.pack(">I", zlib.crc32(b"eXIf" + body))
        data = plain[:33] + chunk + plain[33:]
    else:
        pixels = natural_image(5, 7)
        data = saved(Image.fromarray(pixels), "PNG", exif=exif)
    turned = {1: pixels, 2: np.fliplr(pixels), 3: np.rot90(pixels, 2), 4: np.flipud(pixels), 5: pixels.transpose(1, 0, 2),
              6: np.rot90(pixels, -1), 7: np.rot90(pixels.transpose(1, 0, 2), 2), 8: np.rot90(pixels)}[orientation]  # fmt: skip
    np.testing.assert_array_equal(open_picture(data).rows.whole(), turned)


def test_texts_and_colour_chunks_of_a_png_are_kept():
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Author", "Ä person")
    texts.add(b"gAMA", struct.pack(">I", 100000))
    picture = open_picture(saved(PHOTO, "PNG", pnginfo=texts))
    buffer = io.BytesIO()
    write_picture(buffer, picture, "png")
    with Image.open(buffer) as result:
        result.load()
        assert result.text == {"Author": "Ä person"}
        assert result.info["gamma"] == 1.0


def test_the_transparent_value_of_deep_gray_is_transparent():
    gray = np.array([[0, 1234], [1234, 65535]], np.uint16)
    pixels = open_picture(saved(Image.fromarray(gray), "PNG", transparency=1234)).frames[0].rows.whole()
    np.testing.assert_array_equal(pixels[:, :, 0], gray)
    np.testing.assert_array_equal(pixels[:, :, 1], [[65535, 0], [0, 65535]])


def test_sizes_in_pixels_and_the_orientation_are_left_out():
    exif = Image.Exif()
    exif[ExifTags.Base.ImageWidth], exif[ExifTags.Base.ImageLength], exif[ExifTags.Base.Artist] = 34, 24, "me"
    xmp = (
        b'<x:xmpmeta><rdf:Description tiff:ImageWidth="34" tiff:Make=\'m\' exif:PixelYDimension="24">'
        b"<tiff:Orientation>6</tiff:Orientation><tiff:Model>o</tiff:Model></rdf:Description></x:xmpmeta>"
    )
    kept = open_picture(saved(PHOTO, "JPEG", exif=exif.tobytes(), xmp=xmp)).metadata
    left = Image.Exif()
    left.load(kept.exif)
    assert left[ExifTags.Base.Artist] == "me"
    assert not {ExifTags.Base.ImageWidth, ExifTags.Base.ImageLength} & set(left)
    assert (
        kept.xmp
        == b"<x:xmpmeta><rdf:Description tiff:Make='m'><tiff:Model>o</tiff:Model></rdf:Description></x:xmpmeta>"
    )


def test_what_a_format_cannot_hold_is_said():
    def notes(channels, dtype, kind, metadata=Metadata(), size=(2, 2)):  # noqa: B008
        return check(Picture("PNG", (Frame(rows_of(np.zeros((2, 2, channels), dtype))),), metadata), size, kind)

    assert notes(4, np.uint16, "png") == notes(3, np.uint8, "jpg") == notes(2, np.uint16, "tiff") == []
    assert notes(4, np.uint8, "jpg") == ["jpg has no transparency: it becomes white."]
    assert notes(3, np.uint16, "webp") == ["webp has 8 bits: of 16 bits the upper half is kept."]
    assert notes(3, np.uint8, "bmp", Metadata(icc=b"1", exif=b"1"))[1].startswith(
        "bmp is written without the colour profile"
    )
    with pytest.raises(UserError, match="too many for webp, whose sides have at most 16,383"):
        notes(3, np.uint8, "webp", size=(10, 20000))
    assert notes(1, np.uint8, "webp", Metadata(icc=bytes(16) + b"GRAY")) == [
        "webp has no gray: it is written without the colour profile, which is one of gray."
    ]
    assert notes(1, np.uint8, "webp", Metadata(icc=PROFILE)) == notes(1, np.uint8, "jpg", Metadata(icc=PROFILE)) == []


def test_what_is_too_long_for_a_jpeg_is_left_out_and_said():
    metadata = Metadata(exif=b"Exif\0\0" + bytes(65528), xmp=bytes(65505), dpi=(72.0, 72.0))
    picture = Picture("PNG", (Frame(rows_of(natural_image(8, 8))),), metadata)
    assert check(picture, (8, 8), "jpg") == [
        "jpg is written without EXIF, which has 65,534 bytes; it holds 65,533.",
        "jpg is written without XMP, which has 65,505 bytes; it holds 65,504.",
    ]
    found = open_picture(written(natural_image(8, 8), "jpg", metadata)).metadata
    assert (found.exif, found.xmp, found.dpi) == (None, None, (72.0, 72.0))
    most = Metadata(exif=b"Exif\0\0" + bytes(65527), xmp=bytes(65504))
    with Image.open(io.BytesIO(written(natural_image(8, 8), "jpg", most))) as whole:
        assert (len(whole.info["exif"]), len(whole.info["xmp"])) == (65533, 65504)


def test_what_is_transparent_becomes_white_in_jpeg():
    pixels = np.zeros((16, 16, 4), np.uint8)
    found = open_picture(written(pixels, "jpg")).rows.whole()
    assert found.min() >= 254


def test_16_bits_are_rounded_where_there_are_8():
    pixels = np.array([[[0], [128], [129], [65535]]], np.uint16)
    assert open_picture(written(pixels, "bmp")).rows.whole().ravel().tolist() == [0, 0, 1, 255]


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_read_again_and_told_by_its_name(kind):
    pixels = natural_image(40, 30)
    found = open_picture(written(pixels, kind))
    assert np.abs(found.rows.whole()[:, :, :3].astype(int) - pixels).mean() < 6
    assert format_of(FORMATS[kind].suffix.upper()) == kind


def test_heic():
    heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")
    heif.register_heif_opener()
    picture = open_picture(saved(PHOTO, "HEIF", exif=_exif(), quality=95))
    assert np.abs(picture.rows.whole().astype(int) - np.asarray(PHOTO)).mean() < 6
    assert b"A camera" in picture.metadata.exif


@pytest.mark.parametrize("bits", [8, 10, 12])
def test_the_depth_that_is_lost_of_avif_and_heic_is_said(bits):
    pixels = natural_image(16, 24).astype(np.uint16) * 257
    content = imagecodecs.avif_encode(
        pixels >> (16 - bits) if bits > 8 else pixels.astype(np.uint8), bitspersample=bits
    )
    said = () if bits == 8 else (f"of its {bits} bits 8 are read.",)
    assert open_picture(content).notes == said
    heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")
    deep = heif.from_bytes(mode="RGB;16", size=(24, 16), data=pixels.tobytes())
    buffer = io.BytesIO()
    deep.save(buffer, quality=90)
    assert open_picture(buffer.getvalue()).notes == ("of its 10 bits 8 are read.",)


def test_a_file_is_known_by_its_content_and_not_by_its_name(tmp_path):
    (tmp_path / "a.jpg").write_bytes(saved(PHOTO, "PNG"))
    assert open_picture(tmp_path / "a.jpg").format == "PNG"


def test_what_is_no_picture_is_one_sentence(tmp_path):
    (tmp_path / "text.png").write_text("text")
    (tmp_path / "empty.png").touch()
    whole = saved(PHOTO, "PNG")
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "folder.png").mkdir()
    tifffile.imwrite(tmp_path / "many.tif", np.zeros((9, 9, 6), np.uint16), photometric="rgb")
    tifffile.imwrite(tmp_path / "hdr.tif", np.full((9, 9), 1e5, np.float32))
    tifffile.imwrite(tmp_path / "nan.tif", np.full((9, 9), np.nan, np.float32))
    for name, said in (
        ("text.png", "cannot be read as an image"),
        ("empty.png", "cannot be read as an image"),
        ("cut.png", "cannot be read as an image"),
        ("folder.png", "is a folder"),
        ("none.png", "there is no such file"),
        ("many.tif", "it has 6 channels"),
        ("hdr.tif", "its values go from 0 to 100000"),
        ("nan.tif", "not finite"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            open_picture(tmp_path / name)
        assert str(caught.value).count(name) == 1
        assert "\n" not in str(caught.value)


def test_a_huge_image_is_refused_before_it_is_decoded(tmp_path):
    def header(width, height):
        body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        return (
            b"\x89PNG\r\n\x1a\n"
            + struct.pack(">I", 13)
            + body
            + struct.pack(">I", zlib.crc32(body))
            + struct.pack(">I4s", 0, b"IDAT")
        )

    (tmp_path / "bomb.png").write_bytes(header(60000, 50000))
    with pytest.raises(
        UserError, match=r"60000x50000 are 3,000 megapixels, and at most 300 are read.*--max-megapixels 3001"
    ):
        open_picture(tmp_path / "bomb.png")
    before = Image.MAX_IMAGE_PIXELS
    open_picture(saved(Image.new("L", (20000, 10000)), "PNG"))  # larger than Pillow's own limit, smaller than ours
    assert before == Image.MAX_IMAGE_PIXELS


def test_pillow_images():
    image = Image.open(io.BytesIO(saved(PHOTO, "JPEG", exif=_exif(), icc_profile=PROFILE)))
    picture = picture_of(image)
    result = to_image(picture.rows, picture.metadata)
    assert result.size == (24, 34)
    assert result.info["icc_profile"] == PROFILE
    assert b"A camera" in result.info["exif"]
    deep = to_image(rows_of(np.full((3, 4, 1), 40000, np.uint16)))
    assert (deep.mode, deep.getpixel((0, 0))) == ("I;16", 40000)


def test_memory_of_writing_does_not_grow_with_the_image():
    """A thousand bands of 3 megabytes go through the writers in the memory of a few."""
    code = """
import numpy as np, resource
from sr_distill.infer.write import write_picture
from sr_distill.infer.picture import Frame, Picture
from sr_distill.infer.rows import Rows
band = np.zeros((64, 16000, 3), np.uint8)
class Nowhere:
    def write(self, data): return len(data)
    def seek(self, *a): return 0
    def tell(self): return 0
    def flush(self): pass
rows = lambda count: Rows(64 * count, 16000, 3, band.dtype, lambda: (band for _ in range(count)))
import io
write_picture(io.BytesIO(), Picture("PNG", (Frame(rows(3)),)), KIND)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write_picture(Nowhere() if KIND == "png" else io.BytesIO(), Picture("PNG", (Frame(rows(100)),)), KIND)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    for kind in ("png", "tiff"):
        done = subprocess.run(
            [sys.executable, "-c", code.replace("KIND", repr(kind))], capture_output=True, text=True, check=True
        )
        assert float(done.stdout) < 40  # megabytes; the image has 300
