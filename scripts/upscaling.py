"""How fast files are upscaled, here and by other ways, with the same network and weights; each way in a process of its own.

benchmark.py upscale [--model M] [--threads N] [--rounds N] [--cases small large huge giant] [--ways ours plain real-esrgan spandrel]

small: 200 photographs of 160x120; large: 2 of 12 megapixels; huge: one of 100 megapixels; giant: one of 200, if it is
asked for.

ours         inference.py as it is
plain        a loop in PyTorch: Pillow reads, the network takes the whole image, Pillow writes PNG
real-esrgan  RealESRGANer of the PyPI package (pip install --no-deps realesrgan), as its script uses it, with tiles of 256 where the image is
             larger: OpenCV reads and writes
spandrel     the network as spandrel's descriptor runs it, in a loop with Pillow

Megapixels are of the result, seconds from the first file to the last, without imports and loading the model; memory is the peak of the
process. A process may have --memory GB of it, so that what takes the whole image does not take the whole machine.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from PIL import Image

from sr_distill.cli.common import run_command
from sr_distill.console import format_columns
from sr_distill.data.embedded import training_photos
from sr_distill.devices import is_out_of_memory
from sr_distill.infer.metadata import Metadata
from sr_distill.infer.png import write_png
from sr_distill.infer.rows import BAND, Rows
from sr_distill.models import SRModel
from sr_distill.models.basicsr import import_basicsr
from sr_distill.zoo import open_model

CASES = {"small": (200, 120, 160), "large": (2, 3000, 4000), "huge": (1, 10000, 10000), "giant": (1, 10000, 20000)}
"""Files, height and width of each."""

TILE = 256
Upscale = Callable[[Path, Path], None]


def ours(name: str, files: list[Path], output: Path) -> None:
    """inference.py."""
    from sr_distill.cli import main as sr_distill

    sr_distill(["inference", "-i", *map(str, files), "-o", str(output), "--model", name, "--device", "cpu"])


def plain(model: Callable[[torch.Tensor], torch.Tensor]) -> Upscale:
    """The loop that everybody writes first."""

    @torch.inference_mode()
    def upscale(source: Path, target: Path) -> None:
        pixels = np.array(Image.open(source).convert("RGB"))
        lr = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
        sr = model(lr)[0].clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(sr).save(target)

    return upscale


def spandrel(model: SRModel) -> Upscale:
    """As :func:`plain`, the network in spandrel's descriptor."""
    from spandrel import ImageModelDescriptor, SizeRequirements

    descriptor = ImageModelDescriptor(
        model=model, state_dict=model.state_dict(), architecture=None, purpose="SR", tags=[], supports_half=False, supports_bfloat16=False,
        scale=model.spec.scale, input_channels=3, output_channels=3, size_requirements=SizeRequirements(),
    )  # fmt: skip
    return plain(descriptor)


def real_esrgan(model: SRModel, folder: Path) -> Upscale:
    """RealESRGANer with tiles."""
    import_basicsr("archs.rrdbnet_arch")  # also puts an alias where this basicsr and torchvision do not fit
    import cv2
    from realesrgan import RealESRGANer

    torch.save({"params": model.state_dict()}, folder / "model.pth")
    upsampler = RealESRGANer(
        model.spec.scale, str(folder / "model.pth"), model=model, tile=TILE, pre_pad=0, device=torch.device("cpu")
    )

    def upscale(source: Path, target: Path) -> None:
        image = cv2.imread(str(source), cv2.IMREAD_UNCHANGED)
        upsampler.tile_size = TILE if max(image.shape[:2]) > TILE else 0
        result, _ = upsampler.enhance(image, outscale=model.spec.scale)
        cv2.imwrite(str(target), result)

    return upscale


def work(way: str, name: str, source: Path, output: Path, threads: int, gigabytes: float) -> None:
    """In a process of its own: upscale all files of a folder, and print what it took."""
    resource.setrlimit(resource.RLIMIT_DATA, (int(gigabytes * 2**30),) * 2)
    torch.set_num_threads(threads)
    Image.MAX_IMAGE_PIXELS = None
    output.mkdir()
    files, model = sorted(source.iterdir()), open_model(name)
    if way != "ours":
        upscale = {"plain": plain, "spandrel": spandrel, "real-esrgan": lambda m: real_esrgan(m, output.parent)}[way](
            model
        )
    began, cpu = time.perf_counter(), time.process_time()
    try:
        if way == "ours":
            ours(name, files, output)
        else:
            for file in files:
                upscale(file, output / f"{file.stem}.png")
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        print("RESULT null")
        return
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    pixels = 0
    for file in output.iterdir():
        with Image.open(file) as image:
            pixels += image.width * image.height
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print("RESULT", json.dumps({"rate": pixels / 1e6 / seconds, "peak": peak, "cores": cpu / seconds}))


def _make(folder: Path, count: int, height: int, width: int) -> None:
    """Files with photographs side by side."""
    folder.mkdir()
    photos = [np.array(Image.open(path).convert("RGB")) for path in training_photos()]
    least = min(len(photo) for photo in photos)
    strip = np.concatenate([photo[:least] for photo in photos], axis=1)
    strip = np.tile(strip, (1, -(-(width + 37 * count) // strip.shape[1]), 1))
    for index in range(count):
        part = np.ascontiguousarray(strip[:, 37 * index : 37 * index + width])

        def bands(part: np.ndarray = part) -> object:
            return (part[np.arange(row, min(row + BAND, height)) % len(part)] for row in range(0, height, BAND))

        with (folder / f"{index:04d}.png").open("wb") as file:
            write_png(file, Rows(height, width, 3, part.dtype, bands), Metadata())


def _measured(way: str, args: argparse.Namespace, source: Path) -> dict[str, float] | None:
    """What a process of this way took; None: it ran out of memory."""
    with tempfile.TemporaryDirectory(prefix="upscaling.") as folder:
        command = [sys.executable, __file__, "--work", way, "--model", args.model, "--threads", str(args.threads), "--memory", str(args.memory),
                   "--source", str(source), "--output", f"{folder}/out"]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if lines:
        return json.loads(lines[-1].removeprefix("RESULT "))
    if "No module named 'realesrgan'" in done.stderr:
        raise SystemExit("realesrgan is not installed: pip install --no-deps realesrgan, or leave it out of --ways")
    if "memory" in done.stderr.lower() or done.returncode < 0:
        return None
    raise SystemExit(f"{way}: {done.stderr[-3000:]}")


def measure(args: argparse.Namespace) -> None:
    """A table: a line for each case and way."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="upscaling.") as work_folder:
        for case in args.cases:
            source = Path(work_folder, case)
            _make(source, *CASES[case])
            taken: list[dict] = [{} for _ in range(args.rounds)]
            for one in taken:
                for way in args.ways:
                    one[way] = _measured(way, args, source)
                    print(case, way, one[way], file=sys.stderr, flush=True)
            rows += [
                _row(case, way, [one[way] for one in taken], [one.get("real-esrgan") for one in taken])
                for way in args.ways
            ]
    print(
        format_columns(
            ["case", "way", "megapixels/s", "over real-esrgan", "cores busy", "peak memory, MB"], rows, left=(0, 1)
        )
    )


def _row(case: str, way: str, taken: list[dict | None], theirs: list[dict | None]) -> list[str]:
    if any(one is None for one in taken):
        return [case, way, "out of memory", "", "", ""]
    ratios = [one["rate"] / other["rate"] for one, other in zip(taken, theirs) if other is not None]
    return [case, way, f"{statistics.median(one['rate'] for one in taken):.2f}", f"{statistics.median(ratios):.2f}" if ratios else "",
            f"{statistics.median(one['cores'] for one in taken):.1f}", f"{max(one['peak'] for one in taken):,.0f}"]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ways = ("ours", "plain", "real-esrgan", "spandrel")
    parser.add_argument("--model", default="mobile_sr_tiny_x2", help="of the zoo (default: mobile_sr_tiny_x2)")
    parser.add_argument("--threads", type=int, default=1, help="of the network (default: 1)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=float, default=12, help="gigabytes that a process may have (default: 12)")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=["small", "large", "huge"])
    parser.add_argument("--ways", nargs="+", choices=ways, default=list(ways))
    for name in ("--work", "--source", "--output"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.work:
        work(args.work, args.model, Path(args.source), Path(args.output), args.threads, args.memory)
    else:
        measure(args)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
