"""Which files are upscaled, and where their results go."""

from __future__ import annotations

from pathlib import Path

import pytest

from sr_distill.errors import UserError
from sr_distill.infer import (
    find_inputs,
    jobs_for,
)

from ..conftest import natural_image, write_image


def test_inputs(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        find_inputs([tmp_path / "none.png"])
    with pytest.raises(UserError, match="no image found"):
        find_inputs([tmp_path])
    (tmp_path / "pipe").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="neither a file nor a folder"):
        find_inputs([tmp_path / "pipe"])
    write_image(tmp_path / "a.png", natural_image(8, 8))
    write_image(tmp_path / "sub/deep/b.png", natural_image(8, 8))
    for name in ("film.mp4", "c.txt", ".hidden.png"):
        (tmp_path / name).touch()
    files, notes = find_inputs([tmp_path, tmp_path / "a.png"])
    assert list(files.values()) == [Path("a.png")]
    assert "3 file(s) there are not read as images (c.txt, film.mp4, pipe)" in notes[0]
    assert "1 image(s) in folders below it are left out (--recursive" in notes[1]
    files, _ = find_inputs([tmp_path], recursive=True)
    assert list(files.values()) == [Path("a.png"), Path("sub/deep/b.png")]


def test_a_folder_that_contains_itself_is_searched_once(tmp_path):
    write_image(tmp_path / "a.png", natural_image(8, 8))
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "dir.png").mkdir()
    (tmp_path / "self.png").symlink_to(tmp_path / "self.png")
    files, _ = find_inputs([tmp_path], recursive=True)
    assert list(files) == [tmp_path / "a.png"]


def _targets(names, output, kind=None, label="_x3"):
    return [job.target for job in jobs_for({Path(k): Path(v) for k, v in names.items()}, output, label, kind)[0]]


def test_names_of_results():
    out = Path("out")
    names = {f"in/{name}": name for name in ("a.png", "a.jpg", "b.c.png", "deep/a.png")}
    assert _targets(names, out) == [
        out / name for name in ["a_png_x3.png", "a_jpg_x3.png", "b.c_x3.png", "deep/a_x3.png"]
    ]
    two = {"one/a.png": "a.png", "two/a.png": "a.png", "two/b.png": "b.png"}
    assert _targets(two, out, label="_x4") == [out / "a_png_x4.png", out / "a_png_x4_2.png", out / "b_x4.png"]
    same = {f"in/{name}": name for name in ("a.PNG", "a.jpeg", "b.tiff", "c.jp2", "d.mov", "e.avi")}
    assert [path.name for path in _targets(same, out, "same", "")] == [
        "a.png",
        "a.jpg",
        "b.tif",
        "c.png",
        "d.mov",
        "e.mkv",
    ]


def test_a_result_may_be_named(tmp_path):
    def only(source, target, kind=None):
        return jobs_for({tmp_path / source: Path(source)}, tmp_path / target, "_x4", kind)[0][0]

    job = only("a.jpg", "large.webp")
    assert (job.target, job.kind) == (tmp_path / "large.webp", "webp")
    assert only("a.mp4", "large.mkv").kind == ".mkv"
    for source, target, kind, said in (
        ("a.png", "a.png", None, "is the image itself"),
        ("a.png", "b.jp2", None, "results are .png, .jpg"),
        ("a.png", "b.mp4", None, "the result of .*a.png is an image"),
        ("a.mp4", "b.png", None, "is a video"),
        ("a.png", "b.png", "jpg", "is no jpg, which --format asks for"),
    ):
        with pytest.raises(UserError, match=said):
            only(source, target, kind)
    with pytest.raises(UserError, match="one file, and there are 2 images"):
        jobs_for(
            {tmp_path / "a.jpg": Path("a.jpg"), tmp_path / "b.jpg": Path("b.jpg")}, tmp_path / "large.png", "", None
        )
    (tmp_path / "there.png").touch()
    with pytest.raises(UserError, match="is there already: --overwrite"):
        only("a.png", "there.png")


@pytest.mark.parametrize("output", ["out.webm", "out.ts", "out.mpg", "-"])
def test_a_video_is_not_begun_for_a_file_that_cannot_be_written(output):
    with pytest.raises(UserError, match=r"\.mkv, \.mp4, \.mov, \.m4v, \.avi, \.flv"):
        jobs_for({Path("a.mp4"): Path("a.mp4")}, Path(output), "_x4", None)


def test_what_an_earlier_run_made_in_the_same_folder_is_left_alone(tmp_path):
    for name in ("a.png", "a_x4.png", "b_x4.png"):
        (tmp_path / name).touch()
    names = {tmp_path / name: Path(name) for name in ("a.png", "a_x4.png", "b_x4.png")}
    jobs, notes = jobs_for(names, tmp_path, "_x4", None)
    assert [job.source.name for job in jobs] == ["b_x4.png"]  # a_x4.png is there
    assert len(notes) == 2
    assert [job.source.name for job in jobs_for(names, tmp_path, "_x4", None, overwrite=True)[0]] == [
        "a.png",
        "b_x4.png",
    ]
    assert len(jobs_for(names, tmp_path / "out", "_x4", None)[0]) == 3


def test_a_result_never_takes_the_place_of_its_image(tmp_path):
    names = {tmp_path / "a.png": Path("a.png")}
    (tmp_path / "a.png").touch()
    for overwrite in (False, True):
        with pytest.raises(UserError, match="would take the place of the image: another -o, or a --suffix"):
            jobs_for(names, tmp_path, "", None, overwrite)
    assert jobs_for(names, tmp_path / "out", "", None)[0][0].target == tmp_path / "out/a.png"
