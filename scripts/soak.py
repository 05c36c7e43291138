"""Feed damaged files to the command that upscales, and see that it neither breaks, nor hangs, nor loses anything.

soak.py images     mutated images of every format, and what else lies in people's folders
soak.py videos     mutated films

Each batch is a folder that `inference.py` is run on, in a process of its own. Of every file there must be a whole result, which other
libraries read, or one line that names it; no traceback, nothing half written, no input changed, and an end within the time that is given.
"""

import argparse
import hashlib
import io
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
import tifffile
from PIL import Image, ImageCms

from sr_distill.cli.common import run_command
from sr_distill.errors import UserError
from sr_distill.infer import open_picture

ROOT = Path(__file__).resolve().parents[1]
SCALE, MODEL = 2, "mobile_sr_tiny_x2"
MOST_MEGAPIXELS = 4
SUFFIXES = (".png", ".jpg", ".webp", ".gif", ".bmp", ".tif", ".avif", ".jp2", ".tga", ".ppm")
Mutation = Callable[[random.Random, bytes], bytes]


def _truncated(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _bytes_changed(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 2, 5, 20, 100))):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def _header_changed(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 2, 4))):
        changed[rng.randrange(min(64, len(changed)))] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
    return bytes(changed)


def _zeros_inside(rng: random.Random, data: bytes) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + bytes(min(rng.randrange(1, 200), len(data) - start)) + data[start + 200 :]


def _part_repeated(rng: random.Random, data: bytes) -> bytes:
    start, stop = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:stop] + data[start:]


def _rubbish_behind(rng: random.Random, data: bytes) -> bytes:
    return data + rng.randbytes(rng.randrange(1, 500))


def _huge(rng: random.Random, data: bytes) -> bytes:
    """A header that claims a size which nobody has, where it is known where that stands; checksums are right."""
    side = rng.choice((0, 1, 65535, 100_000, 2**31 - 1, 2**32 - 1))
    if data.startswith(b"\x89PNG"):
        width, height = rng.choice(((side, 8), (8, side), (side, side)))
        header = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
        return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
    if data.startswith(b"BM"):
        return data[:18] + struct.pack("<ii", side % 2**31, rng.choice((8, -(side % 2**31)))) + data[26:]
    if data.startswith(b"GIF"):
        return data[:6] + struct.pack("<HH", side % 65536, side % 65536) + data[10:]
    return _header_changed(rng, data)


def _unchanged(rng: random.Random, data: bytes) -> bytes:
    return data


MUTATIONS: tuple[Mutation, ...] = (
    _truncated, _bytes_changed, _bytes_changed, _header_changed, _header_changed, _zeros_inside, _part_repeated, _rubbish_behind, _huge,
    _unchanged,
)  # fmt: skip


def image_seeds(rng: random.Random) -> list[tuple[str, bytes]]:
    """Sound images of every format, mode and odd size, each with the ending of its name."""
    numbers = np.random.default_rng(rng.randrange(2**32))
    photo = Image.fromarray(cv2.resize(numbers.integers(0, 256, (6, 8, 3), dtype=np.uint8), (40, 30)))
    lab = ImageCms.profileToProfile(
        photo, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = rng.randrange(0, 10), "camera"
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    found: list[tuple[str, bytes]] = []

    def add(suffix: str, image: Image.Image, kind: str, **settings: object) -> None:
        buffer = io.BytesIO()
        image.save(buffer, kind, **settings)
        found.append((suffix, buffer.getvalue()))

    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        image = photo.convert("L").convert("I").convert("I;16") if mode == "I;16" else photo.convert(mode)
        add(".png", image, "PNG")
        add(".tif", image, "TIFF", compression=rng.choice((None, "tiff_lzw", "tiff_adobe_deflate", "packbits")))
    for mode in ("L", "RGB", "CMYK"):
        add(
            ".jpg",
            photo.convert(mode),
            "JPEG",
            exif=exif,
            icc_profile=icc,
            dpi=(300, 300),
            progressive=rng.random() < 0.5,
        )
    for image, suffix, kind in (
        (photo.convert("CMYK"), ".tif", "TIFF"),
        (lab, ".tif", "TIFF"),
        (photo.convert("F"), ".tif", "TIFF"),
    ):
        add(suffix, image, kind)
    for suffix, kind in ((".webp", "WEBP"), (".bmp", "BMP"), (".gif", "GIF"), (".jp2", "JPEG2000"), (".tga", "TGA"), (".ppm", "PPM"),
                         (".avif", "AVIF"), (".ico", "ICO")):  # fmt: skip
        add(suffix, photo, kind)
    add(".png", photo, "PNG", exif=exif, icc_profile=icc, transparency=photo.getpixel((0, 0)))
    for suffix, kind in ((".gif", "GIF"), (".webp", "WEBP"), (".png", "PNG"), (".tif", "TIFF")):
        add(
            suffix,
            photo,
            kind,
            save_all=True,
            append_images=[photo.rotate(90), photo.rotate(30)],
            duration=[10, 0, 500],
        )
    for size in ((1, 1), (1, 300), (300, 1), (2, 3)):
        add(".png", photo.resize(size), "PNG")
        add(".jpg", photo.resize(size), "JPEG")
    for channels in (3, 4):
        deep = numbers.integers(0, 65536, (20, 30, channels), dtype=np.uint16)
        found.append((".png", cv2.imencode(".png", deep)[1].tobytes()))
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, deep, photometric="rgb", extrasamples=["unassalpha"] * (channels - 3))
        found.append((".tif", buffer.getvalue()))
    return found


def video_seeds(rng: random.Random) -> list[tuple[str, bytes]]:
    """Short sound films."""
    import av

    numbers, found = np.random.default_rng(rng.randrange(2**32)), []
    kinds = ((".mp4", "libx264", "yuv420p"), (".mkv", "libx264", "yuv444p"), (".avi", "mpeg4", "yuv420p"),
             (".mov", "mjpeg", "yuvj420p"), (".webm", "libvpx", "yuv420p"))  # fmt: skip
    for suffix, codec, fmt in kinds:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"a{suffix}")
            with av.open(str(path), "w") as film:
                stream = film.add_stream(codec, rate=10)
                stream.width, stream.height, stream.pix_fmt = 48, 32, fmt
                for index in range(8):
                    picture = cv2.resize(numbers.integers(0, 256, (4, 6, 3), dtype=np.uint8), (48, 32))
                    frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format=fmt)
                    frame.pts = index
                    film.mux(stream.encode(frame))
                film.mux(stream.encode())
            found.append((suffix, path.read_bytes()))
    return found


def fill(folder: Path, count: int, seeds: list[tuple[str, bytes]], rng: random.Random, lying: bool) -> Iterator[Path]:
    """Write mutated files; gives those."""
    suffixes = sorted({suffix for suffix, _ in seeds} & set(SUFFIXES)) if lying else []
    for index in range(count):
        suffix, data = rng.choice(seeds)
        data = rng.choice(MUTATIONS)(rng, data) if data else data
        if lying and rng.random() < 0.1:
            suffix = rng.choice(suffixes)
        path = folder / f"{index:05d}{suffix}"
        path.write_bytes(data)
        yield path


def add_oddities(folder: Path) -> None:
    """What else lies in folders."""
    (folder / "empty.png").touch()
    (folder / "folder.png").mkdir()
    (folder / "folder.png/inside.txt").write_text("text")
    (folder / "loop").symlink_to(folder)
    (folder / "itself.png").symlink_to(folder / "itself.png")
    (folder / "nowhere.jpg").symlink_to(folder / "not there")
    (folder / "text.jpg").write_text("This is no image.")
    (folder / "secret.png").write_bytes(b"secret")
    (folder / "secret.png").chmod(0)
    (folder / "new\nline %s {x}.png").write_bytes(b"\x89PNG")
    os.mkfifo(folder / "pipe.png")


def check_batch(folder: Path, output: Path, files: list[Path], named: bool, limit: float) -> tuple[Counter, list[str]]:
    """Run the command on a folder (or on its files by name); gives how many came to what end, and what was wrong."""
    before = {path: hashlib.sha256(path.read_bytes()).digest() for path in files}
    command = [sys.executable, str(ROOT / "scripts/inference.py"), "-o", str(output), "--model", MODEL, "--device", "cpu",
               "--max-megapixels", str(MOST_MEGAPIXELS), "--recursive", "--threads", "1",
               "-i", *(map(str, files) if named else [str(folder)])]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return Counter(), [f"no end within {limit:.0f} s"]
    problems = []
    if done.returncode not in (0, 1):
        problems.append(f"exit code {done.returncode}: {done.stderr[-2000:]}")
    if "Traceback" in done.stderr:
        problems.append(f"a traceback: {done.stderr[-2000:]}")
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    results = {line.rpartition(" (")[0] for line in done.stdout.splitlines() if line}
    counts: Counter = Counter()
    for path in files:
        said = sum(line.startswith(f"error: {path}") for line in errors)
        made = [Path(result) for result in results if Path(result).name.startswith(f"{path.stem}_")]
        counts["upscaled" if made else "refused"] += 1
        if len(made) + said != 1:
            problems.append(f"{path.name}: {len(made)} results and {said} errors")
        problems += [f"{path.name}: {text}" for result in made for text in _damage(result, path, named)]
        if hashlib.sha256(path.read_bytes()).digest() != before[path]:
            problems.append(f"{path.name}: was changed")
    left = {str(path) for path in output.rglob("*") if path.is_file()} - results if output.exists() else set()
    problems += [f"left behind: {path}" for path in sorted(left)]
    return counts, problems


def _damage(result: Path, source: Path, is_video: bool) -> list[str]:
    """What is wrong with a result, as other libraries see it."""
    if is_video:
        import av

        with av.open(str(result)) as film:
            frames = sum(1 for _ in film.decode(video=0))
        return [] if frames else ["the result has no frame"]
    with Image.open(result) as image:
        image.load()
        size = image.size
    whole = open_picture(source, MOST_MEGAPIXELS).rows
    expected = whole.width * SCALE, whole.height * SCALE
    return [] if size == expected else [f"the result has {size}, not {expected}"]


def soak(kind: str, count: int, batch: int, seed: int, limit: float, keep: Path | None) -> int:
    """All batches; the exit code."""
    rng, total, wrong, began = random.Random(seed), Counter(), [], time.perf_counter()
    for index in range(0, count, batch):
        seeds = image_seeds(rng) if kind == "images" else video_seeds(rng)
        with tempfile.TemporaryDirectory(prefix="soak.") as work:
            folder, output = Path(work, "in"), Path(work, "out")
            folder.mkdir()
            files = list(fill(folder, min(batch, count - index), seeds, rng, lying=kind == "images"))
            files = [path for path in files if path.suffix != ".ico"]
            if kind == "images":
                add_oddities(folder)
            counts, problems = check_batch(folder, output, files, kind == "videos", limit)
            total += counts
            if problems and keep is not None:
                shutil.copytree(
                    folder,
                    keep / f"seed_{seed}_batch_{index}",
                    symlinks=True,
                    ignore=lambda *_: {"pipe.png", "secret.png"},
                )
        wrong += [f"batch {index} of seed {seed}: {problem}" for problem in problems]
        print(
            f"{index + batch:6} files: {dict(total)}, {len(wrong)} problem(s), {time.perf_counter() - began:.0f} s",
            flush=True,
        )
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


def main(arguments: list[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("images", "videos"))
    parser.add_argument("--count", type=int, default=2000, help="files (default: 2000)")
    parser.add_argument("--batch", type=int, default=200, help="files in a folder (default: 200)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=300, help="seconds for a batch (default: 300)")
    parser.add_argument("--keep", type=Path, help="where folders with problems are copied")
    args = parser.parse_args(arguments)
    if min(args.count, args.batch) < 1:
        raise UserError("--count and --batch are at least 1.")
    return soak(args.kind, args.count, args.batch, args.seed, args.limit, args.keep)


if __name__ == "__main__":
    sys.exit(run_command(main))
