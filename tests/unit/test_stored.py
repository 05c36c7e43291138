"""What is stored of photos and teachers: made once, made anew where it was damaged, never lost."""

from __future__ import annotations

import json
import os
import pickle
import resource
import stat

import numpy as np
import pytest

from sr_distill import devices
from sr_distill.data import downscale_to_uint8, open_pairs, packed, packs
from sr_distill.data.hashes import FileHashes
from sr_distill.data.images import read_rgb, to_pixels, to_tensor
from sr_distill.errors import UserError
from sr_distill.options.sections import SourceOptions

from ..conftest import natural_image, write_image
from .conftest import photos, repeating


def test_only_what_is_new_is_decoded(tmp_path, decoded):
    source, cache = photos(tmp_path), tmp_path / "cache"
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
    source = photos(tmp_path, 1)
    both = SourceOptions(hr=source.hr, lr=str(tmp_path / "lr"))
    right = to_pixels(downscale_to_uint8(to_tensor(read_rgb(tmp_path / "photos/p0.png"))[:, :70, :82], 2))
    for change in (0, 1):
        lr = right // (1 + change)
        write_image(tmp_path / "lr/p0x2.png", lr)
        np.testing.assert_array_equal(open_pairs([both], 2, 16, tmp_path / "cache", "stop").lr[0], lr)
    assert decoded == ["p0.png", "p0x2.png"] * 2


def test_files_that_are_no_images_are_counted_and_named(tmp_path):
    source = photos(tmp_path, 2)
    for name in ("a.gif", "b.avif", ".hidden.txt"):
        (tmp_path / "photos" / name).touch()
    store = open_pairs([source], 2, 16, tmp_path / "cache", "stop")
    assert len(store.names) == 2
    assert len(store.skipped) == 1
    assert "2 file(s) there are not read as images (a.gif, b.avif)" in store.skipped[0]


def test_stored_images_that_were_damaged_are_made_anew(tmp_path, decoded):
    source = photos(tmp_path, 2)
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
    source = photos(tmp_path, 1)
    open_pairs([source], 2, 16, tmp_path / "cache", "stop")
    (tmp_path / "cache/hashes.json").write_text('{"half a li')
    (shard,) = (tmp_path / "cache/images").glob("*.bin")
    shard.unlink()
    assert open_pairs([source], 2, 16, tmp_path / "cache", "stop").hr[0].shape == (70, 82, 3)
    assert decoded == ["p0.png", "p0.png"]


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
    source, cache = photos(tmp_path), tmp_path / "cache"
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
    source, cache = photos(tmp_path, 1), tmp_path / "cache"
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
    source = photos(tmp_path, 1)
    (tmp_path / "cache").write_text("text")
    with pytest.raises(UserError, match="cannot write to .*cache/images: .*data.cache_dir"):
        open_pairs([source], 2, 16, tmp_path / "cache", "stop")


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_the_cache_has_the_usual_permissions(tmp_path):
    source, before = photos(tmp_path, 1), os.umask(0o027)
    try:
        store = open_pairs([source], 2, 16, tmp_path / "cache", "stop")
        store.add_teacher("teacher", "x", repeating(2))
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
    source, cache = photos(tmp_path), tmp_path / "cache"
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
        store.add_teacher("teacher", "x", repeating(2, upscaled))
    upscaled.clear()
    store.add_teacher("teacher", "x", repeating(2, upscaled))
    assert len(upscaled) == 1


def test_an_interrupted_pass_goes_on_where_it_was(tmp_path, monkeypatch, decoded):
    source, cache, upscaled = photos(tmp_path, 5), tmp_path / "cache", []

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
        return repeating(2, upscaled)(lr)

    with pytest.raises(KeyboardInterrupt):
        store.add_teacher("teacher", "x", interrupted)
    store.add_teacher("teacher", "x", repeating(2, upscaled))
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
    source, cache, upscaled = photos(tmp_path), tmp_path / "cache", []

    def opened(lr_size):
        store = open_pairs([source], 2, lr_size, cache, "stop")
        store.add_teacher("teacher", "x", repeating(2, upscaled))
        return store

    opened(16)
    assert len(upscaled) == 3
    opened(8)
    write_image(tmp_path / "photos/a.png", natural_image(60, 64, seed=7))
    store = opened(16)
    assert [tuple(shape) for shape in upscaled[3:]] == [(3, 30, 32)]
    np.testing.assert_array_equal(store.teachers["teacher"][0], store.lr[0].repeat(2, 0).repeat(2, 1))
    store.add_teacher("other", "y", lambda lr: repeating(2, upscaled)(255 - lr))
    assert len(upscaled) == 8
    np.testing.assert_array_equal(store.teachers["other"][0], 255 - store.teachers["teacher"][0])


def test_the_name_of_a_teachers_outputs_says_how_they_were_made(tmp_path):
    store = open_pairs([photos(tmp_path, 1)], 2, 8, tmp_path / "cache", "stop")
    store.add_teacher("teacher", "x", repeating(2))
    folders = [path.name for path in (tmp_path / "cache").glob("teacher_*")]
    assert folders == [f"teacher_x_fp32_{packed._TEACHER_FORMAT}"]


def test_outputs_in_tiles_are_kept_apart_from_whole_ones(tmp_path):
    store = open_pairs([photos(tmp_path)], 2, 8, tmp_path / "cache", "stop")
    tiled = []

    def small_only(lr):
        if lr.shape[-2] > 35:
            raise MemoryError
        return repeating(2)(lr)

    def in_tiles():
        return "in tiles of 8", lambda lr: 255 - repeating(2, tiled)(lr)

    with pytest.raises(MemoryError):
        store.add_teacher("teacher", "x", small_only)
    for _ in range(2):  # the second time those in tiles are there
        assert store.add_teacher("teacher", "x", small_only, in_tiles=in_tiles) == 1
    assert len(tiled) == 1
    np.testing.assert_array_equal(store.teachers["teacher"][1], store.lr[1].repeat(2, 0).repeat(2, 1))
    np.testing.assert_array_equal(store.teachers["teacher"][2], 255 - store.lr[2].repeat(2, 0).repeat(2, 1))
    assert store.add_teacher("teacher", "x", repeating(2), in_tiles=in_tiles) == 0  # where there is more memory
    np.testing.assert_array_equal(store.teachers["teacher"][2], store.lr[2].repeat(2, 0).repeat(2, 1))


def test_unchanged_files_are_not_hashed_again(tmp_path, monkeypatch):
    source, cache, read = photos(tmp_path), tmp_path / "cache", []
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


def test_a_store_is_pickled_without_its_bytes(tmp_path):
    for index in range(3):
        write_image(tmp_path / "photos" / f"p{index}.png", natural_image(600, 900, seed=index))
    store = open_pairs([SourceOptions(hr=str(tmp_path / "photos"))], 2, 16, tmp_path / "cache", "stop")
    store.add_teacher("teacher", "x", repeating(2))
    assert sum(image.nbytes for image in store.hr) > 4e6  # and the maps are open
    pickled = pickle.dumps(store)
    assert len(pickled) < 20_000
    np.testing.assert_array_equal(pickle.loads(pickled).teachers["teacher"][2], store.teachers["teacher"][2])


def test_many_photos_need_few_open_files(tmp_path):
    for index in range(40):
        write_image(tmp_path / "photos" / f"p{index}.png", natural_image(16, 16, seed=index))
    store = open_pairs([SourceOptions(hr=str(tmp_path / "photos"))], 2, 8, tmp_path / "cache", "stop")
    assert len(store.names) == len({image.tobytes() for image in store.hr}) == 40
    assert len(store.hr._maps) == 1


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
