"""Videos: every frame upscaled, everything else as it was, and what is done stays done."""

from __future__ import annotations

import os
import threading
import time
from fractions import Fraction

import numpy as np
import pytest
import torch

from sr_distill.infer import Enlarger, Scale, Upscaler, Upscalers
from sr_distill.infer.files import Job
from sr_distill.infer.rows import rows_of
from sr_distill.infer.video import film, upscale_video
from sr_distill.models import bicubic_model

from ..conftest import natural_image

av = pytest.importorskip("av", reason="PyAV is not installed")
CPU = torch.device("cpu")
MATRICES = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}


def _film(
    path,
    frames=12,
    size=(48, 64),
    matrix=None,
    full=None,
    pix_fmt="yuv420p",
    times=None,
    sound=True,
    rotation=0,
    **options,
):
    """Moving crops of a photograph, with a sine; lossless."""
    photo = natural_image(size[0] + 2 * frames, size[1] + 3 * frames)
    with av.open(str(path), "w") as film:
        video = film.add_stream("libx264", rate=25)
        video.height, video.width, video.pix_fmt = *size, pix_fmt
        video.options = {"qp": "0", **options}
        context = video.codec_context
        context.time_base = Fraction(1, 1000)
        context.colorspace, context.color_range = matrix or 2, 0 if full is None else 2 if full else 1
        if rotation:
            video.set_display_rotation(rotation)
        audio = film.add_stream("aac", rate=48000, layout="mono") if sound else None
        film.metadata["title"] = "A film"
        for index in range(frames):
            crop = photo[2 * index : 2 * index + size[0], 3 * index : 3 * index + size[1]]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(crop), "rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = (times[index] if times else 40 * index), Fraction(1, 1000)
            film.mux(video.encode(frame))
        film.mux(video.encode())
        if audio is not None:
            wave = np.sin(np.arange(48000 * frames // 25) / 20).astype(np.float32)
            for start in range(0, len(wave) - 1024, 1024):
                part = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], "fltp", "mono")
                part.sample_rate, part.pts, part.time_base = 48000, start, Fraction(1, 48000)
                film.mux(audio.encode(part))
            film.mux(audio.encode())
    return path


def _upscaled(source, target, scale=2, **options):
    said = []
    enlarger = Enlarger(Upscalers([scale], lambda each: Upscaler(bicubic_model(each), CPU)), Scale(float(scale)))
    outcome = upscale_video(Job(source, target, target.suffix), enlarger, said.append, quiet=True)
    return outcome, said


def _frames(path):
    """Times in seconds, planes as stored (float levels of 8 bits), and what the stream says of itself."""
    with av.open(str(path)) as film:
        stream = film.streams.video[0]
        frames = list(film.decode(stream))
        planes = [frame.reformat(format="yuv444p16le").to_ndarray().astype(np.float32) / 256 for frame in frames]
        times = [float(frame.pts * frame.time_base) for frame in frames]
        return times, planes, (frames[0].colorspace, frames[0].color_range, frames[0].format.name, frames[0].rotation)


def _packets(path, kind):
    with av.open(str(path)) as film:
        streams = [stream for stream in film.streams if stream.type == kind]
        return [(bytes(packet), float(packet.pts * packet.time_base)) for packet in film.demux(streams) if packet.size]


def _rgb(planes, matrix, full):
    red, blue = MATRICES[matrix]
    y, cb, cr = np.moveaxis(planes, 2, 0)
    y, cb, cr = (
        (y / 255, (cb - 128) / 255, (cr - 128) / 255) if full else ((y - 16) / 219, (cb - 128) / 224, (cr - 128) / 224)
    )
    r, b = y + 2 * (1 - red) * cr, y + 2 * (1 - blue) * cb
    return np.stack([r, (y - red * r - blue * b) / (1 - red - blue), b], 2)


@pytest.mark.parametrize(
    ("container", "matrix", "full", "pix_fmt", "expected"),
    [("mp4", None, None, "yuv420p", (6, 1, "yuv420p")), ("mkv", 1, False, "yuv420p", (1, 1, "yuv420p")),
     ("mov", 1, True, "yuvj420p", (1, 2, "yuvj420p")), ("mkv", 9, False, "yuv420p10le", (9, 1, "yuv420p10le"))],
)  # fmt: skip
def test_frames_are_those_of_the_network_in_the_colours_of_the_source(
    tmp_path, container, matrix, full, pix_fmt, expected
):
    source = _film(tmp_path / f"a.{container}", matrix=matrix, full=full, pix_fmt=pix_fmt)
    outcome, said = _upscaled(source, tmp_path / f"out.{container}")
    assert (outcome.error, outcome.size, said) == (None, (96, 128), [])
    times, planes, found = _frames(tmp_path / f"out.{container}")
    assert found[:3] == expected
    before, small, _ = _frames(source)
    assert times == before
    assert len(times) == 12
    upscaler = Upscaler(bicubic_model(2), CPU)
    for large, one in zip(planes, small):
        rgb = _rgb(one, expected[0], bool(full)).clip(0, 1).astype(np.float32)
        wanted = upscaler(rows_of(np.ascontiguousarray(rgb))).whole()
        error = _rgb(large, expected[0], bool(full)) - wanted
        assert abs(error.mean()) < 0.5 / 255  # no level is lost on the way there and back
        assert np.sqrt((error**2).mean()) < 6 / 255  # of 4:2:0 and the encoder


def test_sound_and_tags_are_copied(tmp_path):
    source = _film(tmp_path / "a.mkv")
    outcome, _ = _upscaled(source, tmp_path / "out.mkv")
    assert outcome.error is None
    assert len(_packets(source, "audio")) > 20
    assert _packets(tmp_path / "out.mkv", "audio") == _packets(source, "audio")
    with av.open(str(tmp_path / "out.mkv")) as film:
        assert film.metadata["title"] == "A film"
        assert float(film.streams.video[0].average_rate) == 25


def test_tags_of_another_encoding_do_not_stop_it(tmp_path):
    data = _film(tmp_path / "a.mkv").read_bytes()
    assert data.count(b"A film") == 1
    (tmp_path / "b.mkv").write_bytes(data.replace(b"A film", b"A\xff\xfeilm"))
    outcome, _ = _upscaled(tmp_path / "b.mkv", tmp_path / "out.mkv")
    assert outcome.error is None
    assert len(_frames(tmp_path / "out.mkv")[0]) == 12


def test_subtitles(tmp_path):
    """Written as text beside the film first, then with it in one file."""
    _film(tmp_path / "plain.mkv", sound=False)
    (tmp_path / "a.srt").write_text("1\n00:00:00,040 --> 00:00:00,200\nHello\n")
    with av.open(str(tmp_path / "plain.mkv")) as film, av.open(str(tmp_path / "a.srt")) as text, \
            av.open(str(tmp_path / "a.mkv"), "w") as output:  # fmt: skip
        copies = [(film, output.add_stream_from_template(film.streams.video[0])),
                  (text, output.add_stream_from_template(text.streams.subtitles[0]))]  # fmt: skip
        for origin, stream in copies:
            for packet in origin.demux():
                if packet.size:
                    packet.stream = stream
                    output.mux(packet)
    outcome, _ = _upscaled(tmp_path / "a.mkv", tmp_path / "out.mkv")
    assert outcome.error is None
    assert _packets(tmp_path / "out.mkv", "subtitle") == _packets(tmp_path / "a.mkv", "subtitle") != []


def test_times_that_are_not_even_stay(tmp_path):
    times = [0, 33, 80, 81, 200, 240, 300, 301, 400, 500, 501, 900]
    source = _film(tmp_path / "a.mkv", times=times, sound=False)
    _upscaled(source, tmp_path / "out.mkv")
    assert _frames(tmp_path / "out.mkv")[0] == _frames(source)[0] == [time / 1000 for time in times]


@pytest.mark.parametrize(("rotation", "turns"), [(90, 1), (180, 2), (-90, 3)])
def test_frames_are_turned_as_they_are_shown(tmp_path, rotation, turns):
    source = _film(tmp_path / "a.mp4", rotation=rotation)
    outcome, _ = _upscaled(source, tmp_path / "out.mp4")
    assert outcome.size == ((128, 96) if turns % 2 else (96, 128))
    _, planes, found = _frames(tmp_path / "out.mp4")
    assert found[3] == 0
    _, small, original = _frames(source)
    assert round(original[3] / 90) % 4 == turns
    shown = np.rot90(small[0], turns)[:, :, 0]
    assert np.corrcoef(planes[0][::2, ::2, 0].ravel(), shown.ravel())[0, 1] > 0.98


def test_an_odd_size_gets_one_more_row(tmp_path):
    source = _film(tmp_path / "a.mp4", size=(46, 66))
    enlarger = Enlarger(Upscalers([2], lambda each: Upscaler(bicubic_model(2), CPU)), Scale(1.5))
    outcome = upscale_video(Job(source, tmp_path / "out.mp4", ".mp4"), enlarger, str, quiet=True)
    assert (outcome.error, outcome.size) == (None, (69, 99))
    assert _frames(tmp_path / "out.mp4")[1][0].shape[:2] == (70, 100)


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    """It computes no frame twice, and the result is that of a run in one piece."""
    monkeypatch.setattr(film, "SEGMENT", 5)
    source = _film(tmp_path / "a.mkv", frames=17)
    _upscaled(source, tmp_path / "whole.mkv")
    computed = []
    inner = Enlarger.rows

    def rows(self, *args, **kwargs):
        computed.append(1)
        if len(computed) == 13:
            raise KeyboardInterrupt
        return inner(self, *args, **kwargs)

    monkeypatch.setattr(Enlarger, "rows", rows)
    with pytest.raises(KeyboardInterrupt):
        _upscaled(source, tmp_path / "out.mkv")
    parts = tmp_path / ".out.mkv.parts"
    assert sorted(path.name for path in parts.iterdir()) == ["000000.nut", "000001.nut", "made_by.json"]
    assert not (tmp_path / "out.mkv").exists()
    outcome, said = _upscaled(source, tmp_path / "out.mkv")
    assert outcome.error is None
    assert "goes on after 10 frames" in said[0]
    assert len(computed) == 13 + 7
    assert not parts.exists()
    one, two = _frames(tmp_path / "whole.mkv"), _frames(tmp_path / "out.mkv")
    assert one[0] == two[0]
    for a, b in zip(one[1], two[1]):
        np.testing.assert_array_equal(a, b)
    assert _packets(tmp_path / "out.mkv", "audio") == _packets(tmp_path / "whole.mkv", "audio")


def test_nothing_is_decoded_any_more_when_an_interrupted_film_is_closed(tmp_path, monkeypatch):
    """Else FFmpeg reads freed memory: the process ends with a segmentation fault now and then."""
    decoded, source = [], _film(tmp_path / "a.mkv", frames=40)
    inner = film._Frames._decoded

    def slowly(*args):
        for frame in inner(*args):
            time.sleep(0.05)
            decoded.append(frame.pts)
            yield frame

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(film._Frames, "_decoded", slowly)
    monkeypatch.setattr(Enlarger, "rows", stop)
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt) as held:  # with its frames, as whoever prints it holds it
        _upscaled(source, tmp_path / "out.mkv")
    assert threading.active_count() == before
    count = len(decoded)
    time.sleep(0.3)
    assert len(decoded) == count < 10
    assert held.traceback


def test_parts_of_another_network_are_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(film, "SEGMENT", 5)
    source = _film(tmp_path / "a.mkv")
    monkeypatch.setattr(film, "join", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        _upscaled(source, tmp_path / "out.mkv")
    monkeypatch.undo()
    outcome, said = _upscaled(source, tmp_path / "out.mkv", scale=3)
    assert (outcome.size, said) == ((144, 192), [])


def test_a_film_of_many_frames_takes_the_memory_of_few(tmp_path):
    """Frames are let go: those alive are the ones that are decoded ahead, some for each of the decoder's threads, however long the film is."""
    import gc

    source, alive = _film(tmp_path / "a.mkv", frames=60), []
    inner = Enlarger.rows

    def rows(self, *args, **kwargs):
        alive.append(sum(isinstance(thing, av.VideoFrame) for thing in gc.get_objects()))
        return inner(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Enlarger, "rows", rows)
        _upscaled(source, tmp_path / "out.mkv")
    assert max(alive) < 12 + os.cpu_count()


def test_what_is_no_film_is_one_sentence(tmp_path):
    (tmp_path / "text.mp4").write_text("text")
    (tmp_path / "empty.mkv").touch()
    with av.open(str(tmp_path / "sound.mp4"), "w") as film:
        audio = film.add_stream("aac", rate=48000, layout="mono")
        part = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        part.sample_rate, part.pts = 48000, 0
        film.mux(audio.encode(part))
        film.mux(audio.encode())
    whole = _film(tmp_path / "a.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 3])
    for name, said in (("text.mp4", "cannot be read as a video"), ("empty.mkv", "cannot be read as a video"),
                       ("sound.mp4", "there is no video in it"), ("cut.mp4", "cut.mp4"), ("none.mp4", "cannot be read")):  # fmt: skip
        outcome, _ = _upscaled(tmp_path / name, tmp_path / "out.mp4")
        assert said in outcome.error
        assert "\n" not in outcome.error
        assert not (tmp_path / "out.mp4").exists()


def test_damage_inside_is_said(tmp_path):
    data = bytearray(_film(tmp_path / "a.mkv", frames=40, g="5").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 400] = bytes(400)
    (tmp_path / "b.mkv").write_bytes(data)
    outcome, _ = _upscaled(tmp_path / "b.mkv", tmp_path / "out.mkv")
    assert outcome.error is None
    assert 25 < len(_frames(tmp_path / "out.mkv")[0]) <= 40


def test_times_that_go_back_are_brought_forward(tmp_path, monkeypatch):
    """As a damaged film has them; muxers stop at them."""
    whole = film._Frames._decoded

    def disordered(self, *args):
        times = [0, 80, 80, None, 40, 200, 240, 280]
        for frame, moment in zip(whole(self, *args), times):
            frame.pts = moment
            yield frame

    monkeypatch.setattr(film._Frames, "_decoded", disordered)
    outcome, _ = _upscaled(_film(tmp_path / "a.mkv", frames=8), tmp_path / "out.mkv")
    assert outcome.error is None
    times = _frames(tmp_path / "out.mkv")[0]
    assert times == pytest.approx([0, 0.080, 0.081, 0.082, 0.083, 0.200, 0.240, 0.280])


def test_nothing_stays_of_a_film_of_which_nothing_could_be_made(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Enlarger, "rows", fail)
    outcome, _ = _upscaled(_film(tmp_path / "a.mkv"), tmp_path / "out.mkv")
    assert "not enough memory" in outcome.error
    assert [path.name for path in tmp_path.iterdir()] == ["a.mkv"]
