"""What the benchmarks share: whole training steps, and things timed against each other."""

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from accelerate.utils import set_seed

from sr_distill.options import RunOptions
from sr_distill.train import RunFolder, Trainer, build_run, make_accelerator


def training_steps(options: RunOptions, work: Path) -> Callable[[], None]:
    """A function that takes one training step after the other as the training loop does, crops and averaged weights included."""
    set_seed(options.seed)
    if options.train.threads is not None:
        torch.set_num_threads(options.train.threads)
    run = build_run(options)
    accelerator = make_accelerator(options, run.task.has_idle_weights)
    store = run.open_store(accelerator.device, lambda said: None, quiet=True)
    trainer = Trainer(run, RunFolder(work / "unused"), store, accelerator)
    trainer.task.train()
    return trainer.take_step


def in_turn(steps: Mapping[str, Callable[[], object]], rounds: int, at_once: int = 10) -> dict[str, float]:
    """Median seconds of a step of each kind, ``at_once`` (a whole cycle of SOAP's) at a time; a round before warms up."""
    seconds: dict[str, list[float]] = {kind: [] for kind in steps}
    for _ in range(rounds + 1):
        for kind, step in steps.items():
            start = time.perf_counter()
            for _ in range(at_once):
                step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[kind].append((time.perf_counter() - start) / at_once)
    return {kind: statistics.median(values[1:]) for kind, values in seconds.items()}
