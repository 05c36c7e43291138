"""How soon a student is good: PSNR on Set5 against seconds of training, for each optimizer and body, over several seeds.

benchmark.py quality [run] [--minutes M] [--seeds S ...]    train what is not trained yet, each for the same time; then print the table
benchmark.py quality table                                  seconds and steps to each PSNR in GOALS, as Markdown
benchmark.py quality plot                                   docs/quality.svg

Other options for all of them, such as --set train.precision=bf16 train.threads=2, want a --folder of their own.

The time of a step is measured for all of them in turn, once (experiments/quality/seconds.json), and a run has as many steps as fit into the
minutes: other work on the machine then slows a run down and changes none of its numbers.
"""

import argparse
import itertools
import json
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from timing import in_turn, training_steps

from sr_distill.cli.train import main as train
from sr_distill.devices import keep_freed_memory
from sr_distill.errors import UserError
from sr_distill.files import write_json, write_text
from sr_distill.options import RunOptions, load_options
from sr_distill.train import RunFolder

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = ROOT / "options/photos/study/mobile_sr_recipe_x4.yml"
FOLDER = Path("experiments/quality")
GOALS = {30.71: "FSRCNN, 12 K", 30.87: "ECBSR-M4C16, 17 K", 31.24: "ECBSR-M4C32, 52 K"}
"""PSNR-Y on Set5 at x4 of published networks."""

OPTIMIZERS = ("adam", "muon", "soap")
BODIES = {
    "plain": {"reparam": "none", "identity": False, "long_skip": False},
    # With relu it dies under Adam and Muon.
    "ECB": {"reparam": "edge", "identity": False, "long_skip": False, "activation": "prelu"},
    "SESR": {"reparam": "expand", "identity": True, "long_skip": True},
}
"""Bodies that are one and the same network of 29.8 K weights once they are collapsed, but for the last map's sum and ECB's slopes."""
SET, VALIDATIONS = "Set5", 20


def kinds() -> list[tuple[str, str]]:
    """Every body with every optimizer."""
    return list(itertools.product(BODIES, OPTIMIZERS))


def curve(folder: RunFolder) -> dict[int, float]:
    """PSNR-Y on Set5 by step."""
    lines = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["psnr_y_b4"] for line in lines if line["kind"] == "validation"}


@dataclass(frozen=True)
class Comparison:
    """Runs of the same time.

    Attributes:
        folder: where they lie.
        settings: options that differ from OPTIONS in all of them.
    """

    folder: Path = FOLDER
    settings: Sequence[str] = ()

    def options_of(self, optimizer: str, body: str, seed: int, steps: int) -> tuple[RunOptions, list[str]]:
        """The options of a run, and the overrides that make them."""
        student = ", ".join(f"{key}: {json.dumps(value)}" for key, value in BODIES[body].items())
        overrides = [
            f"name={body}_{optimizer}_{steps}_{seed}",
            f"seed={seed}",
            f"output_dir={self.folder}",
            f"student={{type: mobile_sr_tiny, {student}}}",
            f"optimizer={{type: {optimizer}}}",
            f"train.total_steps={steps}",
            f"schedule.warmup={min(200, steps // 10)}",
            f"validation={{sets: [{SET}], every: {max(1, steps // VALIDATIONS)}, metrics: [psnr_y]}}",
            *self.settings,
        ]
        return load_options(OPTIONS, overrides), overrides

    def seconds_of_a_step(self) -> dict[str, float]:
        """Seconds of a step by body and optimizer, with everything in it, measured in turn; from the file where it was measured before."""
        path = self.folder / "seconds.json"
        if not path.exists():
            keep_freed_memory()
            all_options = {
                f"{body} {optimizer}": self.options_of(optimizer, body, 0, 1000)[0] for body, optimizer in kinds()
            }
            steps = {kind: training_steps(options, self.folder) for kind, options in all_options.items()}
            write_json(path, in_turn(steps, rounds=5))
        return json.loads(path.read_text())

    def run(self, minutes: float, seeds: list[int], chosen: list[str]) -> None:
        """Train what is not trained yet."""
        seconds = self.seconds_of_a_step()
        for seed, (body, optimizer) in itertools.product(seeds, kinds()):
            if chosen and f"{body} {optimizer}" not in chosen:
                continue
            steps = round(60 * minutes / seconds[f"{body} {optimizer}"] / 100) * 100
            options, overrides = self.options_of(optimizer, body, seed, steps)
            folder = RunFolder(self.folder / options.name)
            if not folder.trained().exists() or len(curve(folder)) < VALIDATIONS:
                resume = ["--resume"] if folder.options.exists() else []
                if train(["-opt", str(OPTIONS), *overrides, *resume]):
                    raise UserError(f"{options.name} did not end well; see above.")

    def curves(self) -> dict[tuple[str, str, int], list[dict[float, float]]]:
        """PSNR by seconds, of each seed, by body, optimizer and number of steps."""
        paths = sorted(self.folder.glob("*_*_*_*/student.safetensors"))
        seconds, found = self.seconds_of_a_step() if paths else {}, {}
        for path in paths:
            body, optimizer, steps, _ = path.parent.name.split("_")
            cost = seconds[f"{body} {optimizer}"]
            by_second = {step * cost: psnr for step, psnr in curve(RunFolder(path.parent)).items()}
            found.setdefault((body, optimizer, int(steps)), []).append(by_second)
        return found

    def table(self) -> None:
        """Print, for each kind and length, the end and the first validation at each goal; mean over seeds, of those that reach it."""
        print(
            "| body | optimizer | ms a step | steps | minutes | seeds | Set5 at the end | "
            + " | ".join(f"{g} ({n})" for g, n in GOALS.items())
            + " |"
        )
        print("|---|---|---|---|---|---|---|" + "---|" * len(GOALS))
        for (body, optimizer, steps), runs in self.curves().items():
            cost = self.seconds_of_a_step()[f"{body} {optimizer}"]
            ends = [psnrs[max(psnrs)] for psnrs in runs]
            spread = f" ± {statistics.stdev(ends):.3f}" if len(ends) > 1 else ""
            cells = [body, optimizer, f"{cost * 1e3:.0f}", f"{steps:,}", f"{steps * cost / 60:.1f}", str(len(runs))]
            cells.append(f"{statistics.mean(ends):.3f}{spread}")
            for goal in GOALS:
                reached = [
                    min(s for s, psnr in psnrs.items() if psnr >= goal) for psnrs in runs if max(psnrs.values()) >= goal
                ]
                mean = statistics.mean(reached) if reached else 0.0
                said = f"{mean:.0f} s, {mean / cost:,.0f} steps" + (
                    f" ({len(reached)} of {len(runs)})" if len(reached) < len(runs) else ""
                )
                cells.append(said if reached else "not reached")
            print("| " + " | ".join(cells) + " |")

    def plot(self, path: Path) -> None:
        """Draw PSNR against seconds: a line for each kind, the mean over seeds, of the length that has most of them."""
        try:
            from matplotlib.figure import Figure
        except ModuleNotFoundError:
            raise UserError("drawing needs matplotlib: pip install -r scripts/requirements-plot.txt") from None
        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.subplots()
        colors, styles = (
            dict(zip(OPTIMIZERS, ("tab:gray", "tab:orange", "tab:blue"))),
            dict(zip(BODIES, (":", "--", "-"))),
        )
        by_seeds = sorted(self.curves().items(), key=lambda item: len(item[1]))
        most = {kind[:2]: runs for kind, runs in by_seeds}
        for (body, optimizer), runs in most.items():
            points = zip(*(psnrs.items() for psnrs in runs))  # the seeds validate at the same steps
            means = [(same[0][0], statistics.mean(psnr for _, psnr in same)) for same in points]
            axes.plot(*zip(*means), color=colors[optimizer], linestyle=styles[body], label=f"{body}, {optimizer}")
        for goal, name in GOALS.items():
            axes.axhline(goal, color="lightgray", linewidth=0.8, zorder=0)
            axes.annotate(
                name, (1.0, goal), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8, color="gray"
            )
        axes.set(
            xlabel="seconds of training on one CPU core",
            ylabel="PSNR-Y on Set5, x4 (dB)",
            ylim=(29.0, None),
            xlim=(0, None),
        )
        figure.legend(loc="outside right center", fontsize=8)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".part.svg")
        figure.savefig(temporary, metadata={"Date": None})
        write_text(path, temporary.read_text())
        os.unlink(temporary)
        print(f"written: {path}")


def main(arguments: Sequence[str]) -> int:
    """``benchmark.py quality [run | table | plot]``."""
    parser = argparse.ArgumentParser(
        prog="benchmark.py quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=["run", "table", "plot"], default="run")
    parser.add_argument("--minutes", type=float, default=3.0, help="of training, for each run (default: 3)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="S")
    choices = [f"{body} {optimizer}" for body, optimizer in kinds()]
    parser.add_argument(
        "--only", nargs="+", default=[], choices=choices, metavar="'BODY OPTIMIZER'", help="of " + ", ".join(choices)
    )
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="options of all of them")
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"where the runs lie (default: {FOLDER})")
    args = parser.parse_args(arguments)
    compared = Comparison(args.folder, args.set)
    if args.what == "run":
        compared.run(args.minutes, args.seeds, args.only)
    if args.what in ("run", "table"):
        compared.table()
    else:
        compared.plot(ROOT / "docs/quality.svg")
    return 0
