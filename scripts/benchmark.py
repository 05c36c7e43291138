"""Time things against each other within one run.

benchmark.py losses     a training step with each loss over one with L1 alone
benchmark.py train      a training step with each optimizer over one with Adam
benchmark.py evaluate   PSNR-Y and SSIM-Y of Set5 and Set14 at x4 here, by BasicSR's functions, and a small network's own time
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from sr_distill.contracts import Batch
from sr_distill.errors import UserError
from sr_distill.evaluate import ImagePair, default_metrics, open_set
from sr_distill.files import data_root
from sr_distill.losses import LOSSES
from sr_distill.models import upscale_uint8
from sr_distill.models.basicsr import import_basicsr
from sr_distill.options import LossOptions, RunOptions, validate
from sr_distill.options.schema import OptimizerOptions
from sr_distill.train import build_run, make_optimizer
from sr_distill.zoo import open_model

SIZE, BATCH = 32, 16
EXTRA = {"lpips": {"network": "squeeze"}}  # the smallest backbone


class Step:
    """A training step (forward, backward, update) of mobile_sr with L1 to HR and to edsr_x4's stored output, and perhaps one more loss."""

    def __init__(self, extra: Sequence[dict] = (), optimizer: str = "adam") -> None:
        tree = {
            "name": "benchmark",
            "scale": 4,
            "student": {"type": "mobile_sr"},
            "teacher": {"model": "edsr_x4"},
            "data": {"train": [{"hr": "embedded"}]},
            "losses": [{"type": "l1"}, {"type": "l1", "against": "teacher"}, *extra],
            "optimizer": {"type": optimizer},
            "train": {"total_steps": 1},
        }
        self.run = build_run(validate(RunOptions, tree, "benchmark"))
        self.weights = [term.loss.weight for term in self.run.task.terms]
        self.optimizer = make_optimizer(self.run.options.optimizer, self.run.task.train())
        lr, hr, stored = (torch.rand(BATCH, 3, side, side) for side in (SIZE, 4 * SIZE, 4 * SIZE))
        self.batch = Batch(lr, hr, {"teacher": stored})

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
    """Print the median time of a step with each optimizer and its ratio to Adam's, all timed in turn over whole cycles of SOAP's."""
    kinds = get_args(OptimizerOptions.model_fields["type"].annotation)
    steps = {kind: Step(optimizer=kind) for kind in kinds}
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(rounds + 1):
        for kind, step in steps.items():
            seconds[kind].append(statistics.mean(step() for _ in range(10)))
    medians = {kind: statistics.median(values[1:]) for kind, values in seconds.items()}  # the first round warms up
    print(
        f"median of {rounds} x 10 steps; {BATCH} crops of {SIZE}x{SIZE}, x4, mobile_sr, {torch.get_num_threads()} threads:"
    )
    for kind, median in medians.items():
        print(f"{kind:6}  {median * 1e3:6.1f} ms  {median / medians['adam']:.2f} x adam")


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


def main() -> int:
    """``benchmark.py losses | train | evaluate [--rounds N]``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["losses", "train", "evaluate"])
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    {"losses": losses, "train": train, "evaluate": evaluate}[args.what](args.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
