"""Time things against each other within one run: the cost of a training step with each loss, relative to L1 alone."""

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from sr_distill.contracts import Batch
from sr_distill.errors import UserError
from sr_distill.features import TappedTeacher, choose_pairs
from sr_distill.losses import LOSSES
from sr_distill.models import Teacher, build_model
from sr_distill.options import ArchitectureOptions, LossOptions, validate
from sr_distill.options.schema import FeatureOptions
from sr_distill.train import DistillationTask
from sr_distill.zoo import open_model

SIZE, BATCH = 32, 16
EXTRA = {"lpips": {"network": "squeeze"}}  # the smallest backbone


class Step:
    """A training step (forward, backward, Adam) of mobile_sr with L1 and perhaps one more loss; teacher edsr_x4."""

    def __init__(self, extra: list[dict]) -> None:
        student = build_model(validate(ArchitectureOptions, {"type": "mobile_sr"}, "benchmark"), 4)
        terms = [validate(LossOptions, tree, "benchmark") for tree in [{"type": "l1"}, *extra]]
        uses_features = any(term.on == "features" for term in terms)
        teacher = open_model("edsr_x4")
        pairs = choose_pairs(student, teacher, FeatureOptions()) if uses_features else []
        self.task = DistillationTask(student, terms, {"teacher": pairs} if pairs else None).train()
        replay = any(term.replays_teacher for term in terms)
        self.teacher = TappedTeacher(Teacher(teacher), [pair.teacher.path for pair in pairs], replay=replay)
        self.optimizer = torch.optim.Adam(self.task.parameters(), 1e-4)
        lr, hr, stored = (torch.rand(BATCH, 3, side, side) for side in (SIZE, 4 * SIZE, 4 * SIZE))
        self.batch = Batch(lr, hr, {"teacher": stored})

    def __call__(self) -> float:
        """Seconds of one step; the teacher's output is at hand, as it is when it is stored."""
        start = time.perf_counter()
        given = self.teacher(self.batch.lr, stored_sr=self.batch.teacher_sr["teacher"])
        total, _ = self.task(self.batch, {"teacher": given})
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()
        return time.perf_counter() - start


def losses(rounds: int) -> None:
    """Print the median ratio of a step with L1 and the loss over one with L1 alone; both are timed in turn."""
    plain = Step([])
    print(
        f"{'loss':24}  step / step with L1 alone (median of {rounds}; batch {BATCH} of {SIZE}x{SIZE}, x4, mobile_sr, edsr_x4)"
    )
    for name in LOSSES:
        for where in ({}, *({"on": "features", "space": space} for space in ("decoded", "projected", "normalised"))):
            tree = {"type": name, "name": "extra", **EXTRA.get(name, {}), **where}
            try:
                validate(LossOptions, tree, name)
            except UserError:  # a space that this loss is not for
                continue
            label = f"{name} {where.get('space', '')}"
            try:
                step = Step([tree])
            except UserError as error:
                print(f"{label:24}  n/a: {str(error).split(':')[0]}")
                continue
            for warm in (plain, step):
                warm()
            ratios = [step() / plain() for _ in range(rounds)]
            print(f"{label:24}  {statistics.median(ratios):.2f}", flush=True)


def main() -> int:
    """``benchmark.py losses [--rounds N]``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["losses"])
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    losses(args.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
