"""One student, one teacher, one budget, several seeds, and every loss in turn: what does each add to L1 alone?

study.py run      train and measure what is not measured yet (several processes may share the work: --part 0/2, --part 1/2)
study.py table    print the results so far as Markdown
study.py weigh    find the weights in LOSSES below: such that the gradient of the term, on the student's weights, has about 0.3 of
                  the norm of L1's after 100 steps
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from sr_distill.cli.train import main as train
from sr_distill.data import StepBatches
from sr_distill.errors import UserError
from sr_distill.evaluate import default_metrics, evaluate_set, open_set
from sr_distill.files import data_root, write_json
from sr_distill.models import load_model
from sr_distill.options import RunOptions, load_options
from sr_distill.train import build_run

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = ROOT / "options/photos/study/mobile_sr_from_rlfn_x4.yml"
SHARE = 0.3  # norm of a term's gradient relative to L1's, from which weights follow
METRICS = {"psnr": "psnr_y", "ssim": "ssim_y", "lpips": "lpips_squeeze"}

LOSSES: dict[str, list[str]] = {
    "none": [],
    "l1_teacher": ["{type: l1, against: teacher, weight: 1.0}"],
    "fitnet": ["{type: fitnet, on: features, weight: 0.3}"],
    "charbonnier": ["{type: charbonnier, on: features, weight: 0.04}"],
    "l1": ["{type: l1, on: features, weight: 0.05}"],
    "frequency": ["{type: frequency, on: features, weight: 0.4}"],
    "attention_transfer": ["{type: attention_transfer, on: features, weight: 10}"],
    "activation_boundary": ["{type: activation_boundary, on: features, weight: 0.002}"],
    "soft_target": ["{type: soft_target, on: features, weight: 0.2}"],
    "mutual": ["{type: mutual, on: features, weight: 0.08}"],
    "hard_soft": ["{type: hard_soft, on: features, weight: 0.2}"],
    "channel_wise": ["{type: channel_wise, on: features, weight: 0.1}"],
    "similarity": ["{type: similarity, on: features, weight: 0.07}"],
    "pkt": ["{type: pkt, on: features, weight: 3}"],
    "rkd": ["{type: rkd, on: features, weight: 0.002}"],
    "spatial_affinity": ["{type: spatial_affinity, on: features, weight: 0.01}"],
    "fcfd": ["{type: fcfd, on: features, weight: 0.05}"],
    "l1_decoded": ["{type: l1, on: decoded, weight: 8}"],
    "lpips_decoded": ["{type: lpips, network: squeeze, on: decoded, weight: 0.4}"],
    "lpips_projected": ["{type: lpips, network: squeeze, on: projected, weight: 0.7}"],
    "normalised_difference": ["{type: normalised_difference, weight: 0.02}"],
    "vgg_projected": ["{type: perceptual, layers: {relu2_2: 1.0}, on: projected, weight: 0.004}"],
    "vgg_decoded": ["{type: perceptual, layers: {relu2_2: 1.0}, on: decoded, weight: 0.004}"],
    "fitnet_fading": ["{type: fitnet, on: features, weight: 0.3, schedule: {decay_to: 0}}"],
    "attention_transfer_fading": ["{type: attention_transfer, on: features, weight: 10, schedule: {decay_to: 0}}"],
    "spatial_affinity_fading": ["{type: spatial_affinity, on: features, weight: 0.01, schedule: {decay_to: 0}}"],
    "fcfd_fading": ["{type: fcfd, on: features, weight: 0.05, schedule: {decay_to: 0}}"],
    "l1_decoded_fading": ["{type: l1, on: decoded, weight: 8, schedule: {decay_to: 0}}"],
    "fcfd_and_spatial_affinity": [
        "{type: fcfd, on: features, weight: 0.05, schedule: {decay_to: 0}}",
        "{type: spatial_affinity, on: features, weight: 0.01}",
    ],
}
"""What each variant adds to L1 to HR."""


def options_of(variant: str, seed: int = 0) -> tuple[RunOptions, list[str]]:
    """The options of a run, and the overrides that make them."""
    losses = ", ".join(["{type: l1, against: hr}", *LOSSES[variant]])
    overrides = [f"name={variant}_{seed}", f"seed={seed}", f"losses=[{losses}]"]
    if variant == "none":
        overrides.append("teacher=null")
    if "vgg" in variant:
        overrides.append("features.count=1")  # VGG looks at the images of one pair, because it is slow
    return load_options(OPTIONS, overrides), overrides


def run(variants: list[str], seeds: list[int], part: tuple[int, int]) -> None:
    """Train and measure each variant with each seed, unless its results are there."""
    todo = [(variant, seed) for seed in seeds for variant in variants]
    for index, (variant, seed) in enumerate(todo):
        options, overrides = options_of(variant, seed)
        folder = Path(options.output_dir) / options.name
        if index % part[1] != part[0] or (folder / "results.json").exists():
            continue
        started = time.perf_counter()
        resume = ["--resume"] if (folder / "options.yml").exists() else []
        if train(["-opt", str(OPTIONS), *overrides, *resume]):
            raise SystemExit(1)
        seconds = time.perf_counter() - started
        write_json(folder / "results.json", {"seconds": round(seconds, 1), **measure(folder / "student.safetensors")})


def measure(path: Path) -> dict[str, dict[str, float]]:
    """Mean PSNR-Y, SSIM-Y and LPIPS (squeeze) on Set5 and Set14."""
    model, scores = load_model(path), {}
    for name in ("Set5", "Set14"):
        benchmark = open_set(name, model.spec.scale, data_root())
        result = evaluate_set(model, benchmark, torch.device("cpu"), default_metrics(model.spec.scale, "squeeze"))
        if result.problems:
            raise UserError(" ".join(result.problems))
        scores[name] = {short: result.mean(metric) for short, metric in METRICS.items()}
    return scores


def table(variants: list[str], seeds: list[int]) -> None:
    """Print mean and standard deviation over the seeds, and the difference to no teacher with the same seed."""
    results = {}
    for variant in variants:
        for seed in seeds:
            options, _ = options_of(variant, seed)
            path = Path(options.output_dir) / options.name / "results.json"
            if path.exists():
                results.setdefault(variant, {})[seed] = json.loads(path.read_text())
    print("| added to L1 | seeds | Set5 PSNR-Y | Set14 PSNR-Y | difference on Set14 | Set14 SSIM-Y | Set14 LPIPS |")
    print("|---|---|---|---|---|---|---|")
    plain = results.get("none", {})
    for variant, runs in results.items():
        gains = [runs[seed]["Set14"]["psnr"] - plain[seed]["Set14"]["psnr"] for seed in runs if seed in plain]
        cells = [
            f"`{_short(LOSSES[variant])}`",
            str(len(runs)),
            spread([scores["Set5"]["psnr"] for scores in runs.values()], 2),
            spread([scores["Set14"]["psnr"] for scores in runs.values()], 2),
            "" if variant == "none" else spread(gains, 3, sign=True),
            spread([scores["Set14"]["ssim"] for scores in runs.values()], 4),
            spread([scores["Set14"]["lpips"] for scores in runs.values()], 4),
        ]
        print("| " + " | ".join(cells) + " |")


def _short(losses: list[str]) -> str:
    """The terms without what goes without saying."""
    text = " + ".join(loss.removeprefix("{type: ").removesuffix("}") for loss in losses)
    return text.replace("on: features, ", "") or "nothing"


def spread(values: list[float], digits: int, sign: bool = False) -> str:
    """Mean and sample standard deviation."""
    mean = f"{statistics.mean(values):{'+' if sign else ''}.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def weigh(variants: list[str]) -> None:
    """Print the weight of each variant's term that gives its gradient the share SHARE of L1's."""
    for variant in variants:
        if len(LOSSES[variant]) != 1 or variant == "l1_teacher" or "fading" in variant:
            continue
        print(f"{variant}: weight: {_weight(options_of(variant)[0]):.1g}", flush=True)


def _weight(options: RunOptions) -> float:
    torch.manual_seed(0)
    built = build_run(options)
    for model in [*built.students.values(), *(teacher.teacher.model for teacher in built.teachers.values())]:
        model.autocast = torch.bfloat16
    data, store = options.data, built.open_store(torch.device("cpu"), print)
    batches = StepBatches(store, data.lr_size, data.batch_size, options.seed)
    optimizer = torch.optim.Adam(built.task.parameters(), options.optimizer.learning_rate)

    def backward(step: int, weights: list[float]) -> float:
        """The norm of the gradient on the student's weights."""
        batch = batches[step].to(torch.device("cpu"))
        needs = built.task.needs(weights)
        given = {name: built.teachers[name](batch.lr, need) for name, need in needs.items() if name in built.teachers}
        optimizer.zero_grad()
        built.task(batch, given, weights)[0].backward()
        weights_of_student = built.students["student"].parameters()
        return sum(float(p.grad.square().sum()) for p in weights_of_student if p.grad is not None) ** 0.5

    def balance(steps: range) -> float:
        norms = [(backward(step, [1.0, 0.0]), backward(step, [0.0, 1.0])) for step in steps]
        return SHARE * sum(l1 for l1, _ in norms) / sum(other for _, other in norms)

    weight = balance(range(4))
    for step in range(100):
        backward(step, [1.0, weight])
        optimizer.step()
    return balance(range(100, 104))


def main() -> int:
    """``study.py run | table | weigh [--variants V ...] [--seeds S ...] [--part I/N]``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "table", "weigh"])
    parser.add_argument("--variants", nargs="+", choices=LOSSES, default=list(LOSSES), metavar="V")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="S")
    parser.add_argument("--part", default="0/1", metavar="I/N")
    args = parser.parse_args()
    if args.what == "run":
        index, _, count = args.part.partition("/")
        run(args.variants, args.seeds, (int(index), int(count)))
    elif args.what == "table":
        table(args.variants, args.seeds)
    else:
        weigh(args.variants)
    return 0


if __name__ == "__main__":
    sys.exit(main())
