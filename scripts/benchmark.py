"""Time things against each other within one run.

benchmark.py losses     a training step with each loss over one with L1 alone
benchmark.py train      a training step with each optimizer over one with Adam, and with each kind of kernel over one with plain kernels
benchmark.py train --sweep    which batch, crop, number of threads and memory layout trains fastest on this machine
benchmark.py step       a step of 64 crops of 64x64 with everything in it, from the crops to the averaged weights, on a device (--device)
benchmark.py quality    how soon a student is good, with each optimizer and body (quality --help)
benchmark.py upscale    files upscaled here, by a plain loop, by RealESRGANer and by spandrel (upscale --help)
benchmark.py export     models in each runtime and precision: size, quality, latency (export --help)
benchmark.py evaluate   PSNR-Y and SSIM-Y of Set5 and Set14 at x4 here, by BasicSR's functions, and a small network's own time
"""

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import exports
import numpy as np
import quality
import torch
import upscaling
from timing import in_turn, training_steps

from sr_distill.cli.common import run_command
from sr_distill.contracts import Batch
from sr_distill.devices import keep_freed_memory
from sr_distill.errors import UserError
from sr_distill.evaluate import ImagePair, default_metrics, open_set
from sr_distill.files import data_root
from sr_distill.losses import LOSSES
from sr_distill.models import upscale_uint8
from sr_distill.models.basicsr import import_basicsr
from sr_distill.models.blocks import Reparam
from sr_distill.options import LossOptions, RunOptions, validate
from sr_distill.options.optimisation import OptimizerOptions
from sr_distill.train import build_run, make_optimizer
from sr_distill.zoo import open_model

SIZE, BATCH = 32, 16
EXTRA = {"lpips": {"network": "squeeze"}}  # the smallest backbone


class Step:
    """A training step (forward, backward, update) of mobile_sr with L1 to HR and to edsr_x4's stored output, and perhaps one more loss."""

    def __init__(
        self,
        extra: Sequence[dict] = (),
        optimizer: str = "adam",
        student: Mapping[str, Any] = MappingProxyType({"type": "mobile_sr_tiny"}),
        batch: int = BATCH,
        size: int = SIZE,
        channels_last: bool = True,
    ) -> None:
        tree = {
            "name": "benchmark",
            "scale": 4,
            "student": dict(student),
            "teacher": {"model": "edsr_x4"},
            "data": {"train": [{"hr": "embedded"}]},
            "losses": [{"type": "l1"}, {"type": "l1", "against": "teacher"}, *extra],
            "optimizer": {"type": optimizer},
            "train": {"total_steps": 1},
        }
        self.run = build_run(validate(RunOptions, tree, "benchmark"))
        self.weights = [term.loss.weight for term in self.run.task.terms]
        self.optimizer = make_optimizer(self.run.options.optimizer, self.run.task.train())
        lr, hr, stored = (torch.rand(batch, 3, side, side) for side in (size, 4 * size, 4 * size))
        self.batch = Batch(lr, hr, {"teacher": stored}).to(torch.device("cpu"), channels_last)
        self.run.task.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)

    def __call__(self) -> float:
        """Seconds of one step; the teacher's output is at hand, as it is when it is stored."""
        start = time.perf_counter()
        need = self.run.task.needs(self.weights)["teacher"]
        given = self.run.teachers["teacher"](self.batch.lr, need, self.batch.teacher_sr["teacher"])
        total, _ = self.run.task(self.batch, {"teacher": given}, self.weights)
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()
        return time.perf_counter() - start


def losses(rounds: int) -> None:
    """Print the median ratio of a step with L1 and the loss over one with L1 alone; both are timed in turn."""
    plain = Step()
    print(
        f"{'loss':24}  step / step with L1 alone (median of {rounds}; batch {BATCH} of {SIZE}x{SIZE}, x4, mobile_sr, edsr_x4)"
    )
    for name in LOSSES:
        for where in ({}, *({"on": on} for on in ("features", "decoded", "projected"))):
            tree = {"type": name, "name": "extra", **EXTRA.get(name, {}), **where}
            try:
                validate(LossOptions, tree, name)
            except UserError:  # this loss is not for such
                continue
            label = f"{name} {where.get('on', '')}"
            try:
                step = Step([tree])
            except UserError as error:
                print(f"{label:24}  n/a: {str(error).split(':')[0]}")
                continue
            for warm in (plain, step):
                warm()
            ratios = [step() / plain() for _ in range(rounds)]
            print(f"{label:24}  {statistics.median(ratios):.2f}", flush=True)


def train(rounds: int) -> None:
    """Print the median time of a step with each optimizer over Adam's, and with each kind of kernel over plain ones, timed in turn."""
    kinds = get_args(OptimizerOptions.model_fields["type"].annotation)
    _compare({kind: Step(optimizer=kind) for kind in kinds}, "adam", rounds)
    reparams = get_args(Reparam)
    students = {kind: {"type": "mobile_sr_tiny", "reparam": kind} for kind in reparams}
    _compare({f"reparam: {kind}": Step(student=student) for kind, student in students.items()}, "reparam: none", rounds)


def _compare(steps: Mapping[str, Step], base: str, rounds: int) -> None:
    medians = in_turn(steps, rounds)
    print(
        f"median of {rounds} x 10 steps; {BATCH} crops of {SIZE}x{SIZE}, x4, mobile_sr_tiny, {torch.get_num_threads()} threads:"
    )
    for kind, median in medians.items():
        print(f"{kind:16}  {median * 1e3:6.1f} ms  {median / medians[base]:.2f} x {base}")


def sweep(rounds: int) -> None:
    """Print LR pixels a second of a training step in each setting, and the share of what a matrix product of its arithmetic reaches.

    The arithmetic of a step is taken as three times that of a forward pass. Threads beyond one leave none for a second training.
    """
    most = os.cpu_count() or 1
    print(f"x4, mobile_sr_tiny, SOAP; median of {rounds}; {most} CPUs")
    print(f"{'threads':>7}  {'crops':>12}  {'layout':>14}  {'Mpixel/s':>8}  {'GFLOP/s':>8}  of a matrix product")
    for threads in sorted({1, most}):
        torch.set_num_threads(threads)
        peak = _matrix_product(rounds)
        for batch, size in ((16, 32), (4, 64), (64, 16), (16, 48), (32, 32)):
            for channels_last in (True, False):
                step = Step(optimizer="soap", batch=batch, size=size, channels_last=channels_last)
                step()
                seconds = statistics.median(step() for _ in range(max(rounds, 10)))
                pixels = batch * size**2
                speed = 6 * step.run.students["student"].num_parameters * pixels / seconds / 1e9
                layout = "channels_last" if channels_last else "contiguous"
                crops = f"{batch} of {size}x{size}"
                print(
                    f"{threads:>7}  {crops:>12}  {layout:>14}  {pixels / seconds / 1e6:8.3f}  {speed:8.1f}  {speed / peak:.2f}"
                )


def _matrix_product(rounds: int, side: int = 1024) -> float:
    """GFLOP/s of a product of square matrices."""
    matrix = torch.rand(side, side)
    seconds = []
    for _ in range(max(rounds, 5)):
        start = time.perf_counter()
        matrix @ matrix
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / statistics.median(seconds) / 1e9


def step(rounds: int, device: str, work: Path) -> None:
    """Print the median time of a whole training step of each size on a device, as it is, compiled and recorded, pairs kept where it trains."""
    batch, size, at_once = (64, 64, 100) if device == "cuda" else (4, 16, 2)
    print(
        f"x4, {batch} crops of {size}x{size}, half L1 to HR, half to stored outputs, SOAP, on {device}; median of {rounds} x {at_once} steps"
    )
    recorded = {"cuda_graph": True}
    ways = {"": {}, ", recorded": recorded, ", compiled and recorded": {"compile": True, **recorded}}
    sizes = ("mobile_sr_tiny", "mobile_sr_base", "mobile_sr_large")
    for name, (way, change), precision in itertools.product(sizes, ways.items(), ("fp32", "bf16")):
        if change and device == "cpu":
            continue
        tree = {
            "name": "benchmark",
            "scale": 4,
            "device": device,
            "student": {"type": name},
            "teacher": {"model": "edsr_x4"},
            "data": {
                "train": [{"hr": "embedded"}],
                "lr_size": size,
                "batch_size": batch,
                "device": device,
                "cache_dir": str(work / "cache"),
            },
            "losses": [{"type": "l1", "weight": 0.5}, {"type": "l1", "against": "teacher", "weight": 0.5}],
            "train": {"total_steps": 10**6, "precision": precision, **change},
        }
        options = validate(RunOptions, tree, "benchmark")
        seconds = in_turn({name: training_steps(options, work)}, rounds, at_once)[name]
        label = f"{name}, {precision}{way}"
        print(f"{label:42}  {seconds * 1e3:8.3f} ms", flush=True)


def evaluate(rounds: int) -> None:
    """Print the medians of the three times, taken in turn, and their ratios. Images are decoded before."""
    model, device = open_model("mobile_sr_tiny_x4").eval(), torch.device("cpu")
    names = ["Set5", "Set14"] if data_root() else ["embedded"]
    images = [image.load(4) for name in names for image in open_set(name, 4, data_root()).images]
    with torch.no_grad():
        outputs = [upscale_uint8(model, lr[None], device) for lr, _ in images]
    arrays = [
        tuple(np.ascontiguousarray(x.permute(1, 2, 0).numpy()[:, :, ::-1]) for x in (sr[0], hr))
        for sr, (_, hr) in zip(outputs, images)
    ]
    theirs = import_basicsr("metrics.psnr_ssim")

    def network() -> None:
        with torch.no_grad():
            for lr, _ in images:
                upscale_uint8(model, lr[None], device)

    def ours() -> None:
        for sr, (_, hr) in zip(outputs, images):
            pair = ImagePair(sr, hr[None])
            for metric in default_metrics(4):
                metric.measure(pair).item()

    def basicsr() -> None:
        for sr, hr in arrays:
            theirs.calculate_psnr(sr, hr, 4, test_y_channel=True)
            theirs.calculate_ssim(sr, hr, 4, test_y_channel=True)

    times: dict[str, list[float]] = {"network": [], "metrics here": [], "metrics of BasicSR": []}
    for _ in range(rounds + 1):
        for kind, run in zip(times, (network, ours, basicsr)):
            start = time.perf_counter()
            run()
            times[kind].append(time.perf_counter() - start)
    medians = {kind: statistics.median(values[1:]) for kind, values in times.items()}  # the first round warms up
    print(
        f"{len(images)} images of {', '.join(names)} at x4, mobile_sr_tiny_x4, {torch.get_num_threads()} threads, median of {rounds}:"
    )
    for kind, seconds in medians.items():
        print(f"{kind:18}  {seconds * 1e3:7.1f} ms")
    print(f"metrics of BasicSR / metrics here: {medians['metrics of BasicSR'] / medians['metrics here']:.2f}")
    print(f"(network + metrics here) / network: {1 + medians['metrics here'] / medians['network']:.2f}")


def main(arguments: Sequence[str] | None = None) -> int:
    """``benchmark.py losses | train [--sweep] | step [--device D] | quality | upscale | export | evaluate [--rounds N]``."""
    arguments = sys.argv[1:] if arguments is None else arguments
    of_its_own = {"quality": quality.main, "upscale": upscaling.main, "export": exports.main}
    if arguments[:1] and arguments[0] in of_its_own:
        return of_its_own[arguments[0]](arguments[1:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["losses", "train", "step", "quality", "upscale", "export", "evaluate"])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--sweep", action="store_true", help="train: settings against each other, not optimizers")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="step: where")
    args = parser.parse_args(arguments)
    keep_freed_memory()
    if args.what == "train" and args.sweep:
        sweep(args.rounds)
        return 0
    if args.what == "step":
        with tempfile.TemporaryDirectory() as work:
            step(args.rounds, args.device, Path(work))
        return 0
    {"losses": losses, "train": train, "evaluate": evaluate}[args.what](args.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
