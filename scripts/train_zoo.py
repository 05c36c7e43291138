"""Train the models of the zoo one after the other, most valuable first; each goes on where it was stopped.

train_zoo.py status              a line for each file of options/zoo/: how far it is
train_zoo.py run                 train what is not finished, in their order
train_zoo.py land                put each trained model that beats the one in the zoo, or has none there, into sr_distill/zoo/, with its card;
                                 judged in floats and in 8 bits alike (ONNX Runtime), because phones run both
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sr_distill.cli.common import run_command
from sr_distill.errors import UserError
from sr_distill.evaluate import mean_scores
from sr_distill.export import in_runtime
from sr_distill.files import data_root, write_text
from sr_distill.models import SRModel, bicubic_model, load_model, save_model
from sr_distill.options import RunOptions, load_options
from sr_distill.train import RunFolder
from sr_distill.train.checkpoint import latest_checkpoint, step_of
from sr_distill.zoo import open_model

ROOT = Path(__file__).resolve().parents[1]
QUEUE = ROOT / "options/zoo"
ZOO = ROOT / "sr_distill/zoo"
SETS = ("Set5", "Set14")
METRICS = ("psnr_y", "ssim_y")
DIGITS = {"psnr_y": 4, "ssim_y": 5, "lpips_squeeze": 5, "vgg19_distance": 5}
TITLES = {"psnr_y": "PSNR-Y in dB", "ssim_y": "SSIM-Y", "lpips_squeeze": "LPIPS", "vgg19_distance": "VGG19 distance"}
Scores = dict[str, list[float]]
"""Means by set, in the order of the metrics."""
LICENCES = {"hit_srf": "MIT", "rlfn": "Apache-2.0", "PAN": "none stated (research use)"}
"""Of teachers, by the start of their files' names."""


class Job:
    """One file of the queue: a run, its folder, and how far it is."""

    def __init__(self, path: Path, overrides: list[str]) -> None:
        self.path, self.overrides = path, overrides
        self.options: RunOptions = load_options(path, overrides)
        self.name = self.options.name
        self.folder = RunFolder(Path(self.options.output_dir) / self.name)

    @property
    def is_perceptual(self) -> bool:
        """Whether it is trained for looks: measured and judged by perceptual distances, too."""
        return self.options.validation is not None and (self.options.validation.best_by or "").startswith("lpips")

    @property
    def metrics(self) -> tuple[str, ...]:
        """What its card tells."""
        return (*METRICS, "lpips_squeeze", "vgg19_distance") if self.is_perceptual else METRICS

    @property
    def judged_by(self) -> int:
        """Which of them decides whether it is better than what is in the zoo: PSNR, or the distance it was not trained with."""
        return 3 if self.is_perceptual else 0

    @property
    def step(self) -> int:
        """The step of its last checkpoint."""
        last = latest_checkpoint(self.folder.checkpoints)
        return 0 if last is None else step_of(last)

    @property
    def is_finished(self) -> bool:
        """Whether its last step is done and its student written."""
        return self.step >= self.options.train.total_steps and self.folder.trained().exists()

    @property
    def status(self) -> str:
        """A line."""
        state = "finished" if self.is_finished else "begun" if self.step else "waiting"
        return f"{self.name:24}  {state:8}  {self.step:>7,} of {self.options.train.total_steps:,} steps"

    def train(self, deadline: float) -> bool:
        """Train until it is finished (True) or the time is over, in a process of its own, which ends with a checkpoint.

        Raises:
            UserError: the training failed.
        """
        command = [sys.executable, str(ROOT / "scripts/train.py"), "-opt", str(self.path), *self.overrides]
        resume = ["--resume"] if self.folder.options.exists() else []
        # A process group of its own: Ctrl-C reaches it through here alone, once. No more than that: what setsid() starts gets a share
        # of the processor of its own on Linux (autogroups), and `nice` would count for nothing.
        with subprocess.Popen([*command, *resume], preexec_fn=os.setpgrp) as process:
            try:
                code = process.wait(None if deadline == float("inf") else max(deadline - time.monotonic(), 0.0))
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                process.send_signal(signal.SIGINT)
                code = process.wait()
        if code not in (0, 130, -signal.SIGINT):  # the last: asked before it listened
            raise UserError(f"{self.name}: the training ended with exit code {code}; see above.")
        return code == 0


def run(jobs: list[Job], minutes: float) -> None:
    """Train what is not finished; a line of status whenever one begins or ends."""
    deadline = time.monotonic() + 60 * minutes
    for job in jobs:
        print(job.status, flush=True)
        if not job.is_finished:
            finished = job.train(deadline)
            print(job.status, flush=True)
            if not finished:
                break


def land(jobs: list[Job]) -> None:
    """Measure each student that is trained to its end; it goes into the zoo where its mean over the sets is better than what is there."""
    for job in jobs:
        if not job.is_finished:
            if job.step:
                print(f"{job.status}: left out until it is finished")
            continue
        model = load_model(job.folder.trained())
        forms, standing = measure_forms(model, job.metrics), _standing(job.name)
        if standing is not None and not _is_better(job, forms, standing):
            print(f"{job.name}: {_said(job, forms)} is no better than {_said(job, standing)} in the zoo")
            continue
        text = card(job, model, forms)  # before the model that it may have begun from is replaced
        save_model(model, ZOO / f"{job.name}.safetensors")
        write_text(ZOO / f"{job.name}.md", text)
        print(f"{job.name}: {_said(job, forms)} is in the zoo now")


def measure_forms(model: SRModel, metrics: Sequence[str] = METRICS) -> dict[str, Scores]:
    """Scores of a student in floats and in the 8 bits of its calibrated export, by the name of the form.

    Raises:
        UserError: ONNX Runtime is not installed.
    """
    return {"fp32": measure(model, metrics), "int8": measure(in_runtime(model, "onnx", "int8"), metrics)}


def measure(model: SRModel, metrics: Sequence[str] = METRICS) -> Scores:
    """Means by set, in the order of the metrics."""
    scores = mean_scores(model, SETS, metrics, data_root())
    return {name: [round(means[metric], DIGITS[metric]) for metric in metrics] for name, means in scores.items()}


def card(job: Job, model: SRModel, forms: dict[str, Scores]) -> str:
    """What the file is, how good, made from what, how to repeat it, and its licence."""
    options, architecture = job.options, job.options.student
    teacher = options.teacher.model
    licence = next((text for start, text in LICENCES.items() if Path(teacher).name.startswith(start)), "see its source")
    rows = {"bicubic": measure(bicubic_model(options.scale), job.metrics)}
    if options.init_from is not None:
        rows[f"{options.init_from}, from which it began"] = measure(open_model(options.init_from), job.metrics)
    rows |= {job.name: forms["fp32"], f"{job.name} in int8, calibrated (ONNX Runtime)": forms["int8"]}
    rows[f"its teacher, {Path(teacher).stem}"] = measure(open_model(teacher, options.scale), job.metrics)
    lines = [f"| {name} | " + " | ".join(map(_cell, row.values())) + " |" for name, row in rows.items()]
    path = job.path.resolve()
    file = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    data = ", ".join(f"{s.hr}" + (f" shrunk by {s.downscale}" if s.downscale > 1 else "") for s in options.data.train)
    shape = f"{architecture.num_feat} channels, {architecture.num_block} blocks, {model.num_parameters:,} parameters"
    crops = f"{options.data.batch_size} crops of {options.data.lr_size}x{options.data.lr_size} LR pixels"
    update = f"{options.optimizer.type.upper()} {options.optimizer.learning_rate:g}, {options.schedule.type} decay"
    more = (
        " LPIPS by SqueezeNet, with which it was trained; VGG19's distance, with which it was not."
        if job.is_perceptual
        else ""
    )
    kind = "luma" if architecture.color == "y" else "RGB"
    kind += ", sharper to the eye" if job.is_perceptual else ""
    return f"""# {job.name}

A student for phones: mobile_sr ({shape}), for x{options.scale}, {kind}.

| | {" | ".join(forms["fp32"])} |
|---|{"---|" * len(forms["fp32"])}
{chr(10).join(lines)}

{" / ".join(TITLES[metric] for metric in job.metrics)} of the RGB output; luma without a border of {options.scale}.{more}

- Data: {data}; no DIV2K, no benchmark image. LR by MATLAB-like bicubic in floating point, rounded once.
- {_objective(options, Path(teacher).stem)}
- {options.train.total_steps:,} steps of {crops}, {update}, EMA {options.train.ema}, seed {options.seed}; measured once, at the end.
- Options: `{file}`.

To repeat it:

    {" ".join(["SR_DISTILL_DATA=DIR python scripts/train.py -opt", str(file), *job.overrides])}

Licence of the teacher's weights: {licence}. The photographs are research data of their publishers.

```json
{json.dumps(forms)}
```
"""


def _objective(options: RunOptions, teacher: str) -> str:
    halves = {(term.type, term.on, term.source, term.weight) for term in options.losses}
    if halves == {("l1", "sr", "hr", 0.5), ("l1", "sr", "teacher", 0.5)}:
        return f"Distilled from {teacher}: half L1 to HR, half L1 to the teacher's stored output."
    terms = []
    for term in options.losses:
        size = f"weight {term.weight:g}" if term.balance is None else f"{term.balance.ratio:g} of L1's gradient"
        terms.append(f"{term.type} on {term.on} against {term.source} ({size})")
    return f"Distilled from {teacher}: {', '.join(terms)}."


def _cell(values: list[float]) -> str:
    psnr, *others = values
    return " / ".join([f"{psnr:.2f}", *(f"{value:.4f}" for value in others)])


def _standing(name: str) -> dict[str, Scores] | None:
    """The scores on the card in the zoo."""
    path = ZOO / f"{name}.md"
    return json.loads(path.read_text().split("```json")[1].split("```")[0]) if path.exists() else None


def _is_better(job: Job, forms: dict[str, Scores], standing: dict[str, Scores]) -> bool:
    difference = sum(_mean(job, forms[form]) - _mean(job, standing[form]) for form in forms)
    return difference < 0 if job.is_perceptual else difference > 0


def _said(job: Job, forms: dict[str, Scores]) -> str:
    """What it is judged by, in words."""
    return f"{job.metrics[job.judged_by]} " + ", ".join(f"{_mean(job, forms[form]):.4f} in {form}" for form in forms)


def _mean(job: Job, scores: Scores) -> float:
    return sum(values[job.judged_by] for values in scores.values()) / len(scores)


def main(arguments: Sequence[str] | None = None) -> int:
    """``train_zoo.py status | run [--minutes M] | land [--only NAME ...] [key.path=value ...]``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["status", "run", "land"])
    parser.add_argument(
        "overrides", nargs="*", metavar="key.path=value", help="options of every run that differ from its file"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these runs alone")
    parser.add_argument(
        "--queue", type=Path, default=QUEUE, metavar="DIR", help="folder of options files, in the order of their names"
    )
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="run: stop after so many, with a checkpoint"
    )
    args = parser.parse_intermixed_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    jobs = [Job(path, args.overrides) for path in sorted(args.queue.glob("*.yml"))]
    unknown = set(args.only or ()) - {job.name for job in jobs}
    if unknown or not jobs:
        raise UserError(
            f"{args.queue} has no {', '.join(unknown) or 'options files'}; it has {', '.join(job.name for job in jobs)}."
        )
    jobs = [job for job in jobs if not args.only or job.name in args.only]
    if args.what == "run":
        run(jobs, args.minutes)
    elif args.what == "land":
        land(jobs)
    else:
        print("\n".join(job.status for job in jobs))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
