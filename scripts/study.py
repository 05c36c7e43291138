"""What does each choice bring? One options file, one change at a time, several seeds.

study.py STUDY run      train and measure what is not measured yet (several processes may share the work: --part 0/2, --part 1/2)
study.py STUDY table    print the results so far as Markdown
study.py STUDY way      print the differences on Set5 at each validation: whether a gain stays, or was faster convergence alone
study.py STUDY weigh    for terms that are added: the weight at which the gradient of the term, on the student's weights, has about 0.3 of
                        the norm of L1's after 100 steps

STUDY is losses (every loss in turn beside L1 to HR), teacher (does one help, and how), family (what each part of mobile_sr brings), int8
(what helps training for int8) or search (learning rate, batch, target, ...). What was measured stands in docs/studies/STUDY.json; runs lie in
experiments/study/STUDY/.
"""

import argparse
import itertools
import json
import re
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from quality import curve

from sr_distill.cli.common import run_command
from sr_distill.cli.train import main as train
from sr_distill.data import StepBatches
from sr_distill.errors import UserError
from sr_distill.evaluate import mean_scores
from sr_distill.export import in_runtime
from sr_distill.files import data_root, write_json
from sr_distill.models import SRModel, load_model
from sr_distill.options import LossOptions, RunOptions, load_options
from sr_distill.options.losses import BalanceOptions
from sr_distill.train import RunFolder, build_run, find_weights
from sr_distill.train.balance import BATCHES

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = ROOT / "options/photos/study"
RESULTS = ROOT / "docs/studies"
SETS = ("Set5", "Set14")
_STEPS = 100
SHARE = 0.3  # norm of a term's gradient relative to L1's, from which weights follow
METRICS = {"psnr": ("psnr_y", 3), "ssim": ("ssim_y", 4), "lpips": ("lpips_squeeze", 4)}


@dataclass(frozen=True)
class Study:
    """Runs that differ from one options file in one respect each.

    Attributes:
        options: the file.
        variants: what each overrides, by name.
        base: the variant that the others are compared with.
        metrics: keys of METRICS.
        int8: whether students are measured as their int8 export in ONNX Runtime.
    """

    options: Path
    variants: Mapping[str, Sequence[str]]
    base: str
    metrics: Sequence[str] = ("psnr", "ssim", "lpips")
    int8: bool = False


def _against_hr(*terms: str, share: float = 1.0) -> list[str]:
    return [f"losses=[{', '.join([f'{{type: l1, against: hr, weight: {share}}}', *terms])}]"]


def _without_teacher(*terms: str) -> list[str]:
    return [*_against_hr(*terms), "teacher=null"]


_FITNET, _FCFD = "{type: fitnet, on: features, weight: 0.3", "{type: fcfd, on: features, balance: {ratio: 0.3}"
_AFFINITY, _ATTENTION = (
    "{type: spatial_affinity, on: features, weight: 0.01",
    "{type: attention_transfer, on: features, weight: 10",
)
_FADING = ", schedule: {decay_to: 0}}"
_ONE_PAIR = "features.count=1"  # VGG looks at the images of one pair, because it is slow

LOSSES = {
    "none": _without_teacher(),
    "l1_teacher": _against_hr("{type: l1, against: teacher, weight: 1.0}"),
    "fitnet": _against_hr(_FITNET + "}"),
    "charbonnier": _against_hr("{type: charbonnier, on: features, weight: 0.04}"),
    "l1": _against_hr("{type: l1, on: features, weight: 0.05}"),
    "frequency": _against_hr("{type: frequency, on: features, weight: 0.4}"),
    "attention_transfer": _against_hr(_ATTENTION + "}"),
    "activation_boundary": _against_hr("{type: activation_boundary, on: features, weight: 0.002}"),
    "soft_target": _against_hr("{type: soft_target, on: features, weight: 0.2}"),
    "mutual": _against_hr("{type: mutual, on: features, weight: 0.08}"),
    "hard_soft": _against_hr("{type: hard_soft, on: features, weight: 0.2}"),
    "channel_wise": _against_hr("{type: channel_wise, on: features, weight: 0.1}"),
    "similarity": _against_hr("{type: similarity, on: features, weight: 0.07}"),
    "pkt": _against_hr("{type: pkt, on: features, weight: 3}"),
    "rkd": _against_hr("{type: rkd, on: features, weight: 0.002}"),
    "spatial_affinity": _against_hr(_AFFINITY + "}"),
    "fcfd": _against_hr(_FCFD + "}"),
    "l1_decoded": _against_hr("{type: l1, on: decoded, weight: 8}"),
    "lpips_decoded": _against_hr("{type: lpips, network: squeeze, on: decoded, weight: 0.4}"),
    "lpips_projected": _against_hr("{type: lpips, network: squeeze, on: projected, weight: 0.7}"),
    "normalised_difference": _against_hr("{type: normalised_difference, weight: 0.02}"),
    "vgg_projected": [
        *_against_hr("{type: perceptual, layers: {relu2_2: 1.0}, on: projected, weight: 0.004}"),
        _ONE_PAIR,
    ],
    "vgg_decoded": [*_against_hr("{type: perceptual, layers: {relu2_2: 1.0}, on: decoded, weight: 0.004}"), _ONE_PAIR],
    "fitnet_fading": _against_hr(_FITNET + _FADING),
    "attention_transfer_fading": _against_hr(_ATTENTION + _FADING),
    "spatial_affinity_fading": _against_hr(_AFFINITY + _FADING),
    "fcfd_fading": _against_hr(_FCFD + _FADING),
    "l1_decoded_fading": _against_hr("{type: l1, on: decoded, weight: 8" + _FADING),
    "fcfd_and_spatial_affinity": _against_hr(_FCFD + _FADING, _AFFINITY + "}"),
}


def _teacher_variants() -> dict[str, list[str]]:
    """Kinds of help, for two sizes and two lengths; on features by their share of the gradient: weights differ 30-fold with the size."""
    half, found = "{type: l1, against: teacher, weight: 0.5}", {}
    added = {
        name: f"{{type: {name}, on: features, balance: {{against: l1, ratio: {SHARE}}}}}"
        for name in ("spatial_affinity", "attention_transfer", "pkt")
    }
    for size, steps in (("tiny", 10_000), ("base", 10_000), ("tiny", 50_000), ("base", 50_000)):
        kinds = {
            "none": _without_teacher(),
            "l1": _against_hr(half, share=0.5),
            **{name: _against_hr(term) for name, term in added.items()},
            **{f"l1_and_{name}": _against_hr(half, term, share=0.5) for name, term in added.items()},
        }
        shape = [f"student={{type: mobile_sr_{size}, color: y}}", f"train.total_steps={steps}"]
        shape += [f"validation={{sets: [Set5], every: {steps // 10}, metrics: [psnr_y]}}"]
        found |= {f"{size}_{steps // 1000}k_{kind}": [*shape, *overrides] for kind, overrides in kinds.items()}
    return found


_PARTS = {
    "whole": [],
    "reparam_none": ["student.reparam=none"],
    "reparam_edge": ["student.reparam=edge"],
    "no_identity": ["student.identity=false"],
    "no_long_skip": ["student.long_skip=false"],
    "plain": ["student.reparam=none", "student.identity=false", "student.long_skip=false"],
    "anchor_learned": ["student.anchor=learned"],
    "head_5": ["student.head_kernel=5"],
    "tail_3_11_blocks": ["student.tail_kernel=3", "student.num_block=11"],
    "hidden_64": ["student.hidden=64"],
    "prelu": ["student.activation=prelu"],
    "silu": ["student.activation=silu"],
    "20_channels_7_blocks": ["student.tail_kernel=3", "student.num_feat=20", "student.num_block=7"],
}
FAMILY = {
    f"{optimizer}_{part}": [f"optimizer={{type: {optimizer}}}", *overrides]
    for optimizer in ("soap", "adam")
    for part, overrides in _PARTS.items()
}
SEARCH = {
    "base": [],
    "rate_1e-3": ["optimizer.learning_rate=1e-3"],
    "rate_5e-3": ["optimizer.learning_rate=5e-3"],
    "muon": ["optimizer={type: muon}"],
    "beta2_0.99": ["optimizer.betas=[0.9, 0.99]"],
    "every_20": ["optimizer.precondition_every=20"],
    "4_of_64": ["data.batch_size=4", "data.lr_size=64"],
    "8_of_32": ["data.batch_size=8", "train.total_steps=20000"],
    "32_of_32": ["data.batch_size=32", "train.total_steps=5000"],
    "ema_0.9995": ["train.ema=0.9995"],
    "mse_at_the_end": [
        "losses=[{type: l1, against: hr, weight: 0.5, schedule: {stop: 8000}, name: l1_hr}, "
        "{type: l1, against: teacher, weight: 0.5, schedule: {stop: 8000}, name: l1_teacher}, "
        "{type: mse, against: hr, weight: 10, schedule: {start: 8000}}, "
        "{type: mse, against: teacher, weight: 10, schedule: {start: 8000}}]"
    ],
    "wsd": ["schedule={type: wsd, warmup: 200, min_factor: 0}"],
    "teacher_hit_srf": ["teacher.model=weights/hit_srf_x4.pth"],
    "teacher_x8": ["teacher.self_ensemble=true"],
    "teacher_only": ["losses=[{type: l1, against: teacher}]"],
}


def _int8_variants() -> dict[str, list[str]]:
    """Whom a student of the zoo listens to while it learns with the rounding: HR alone, a teacher, itself before the rounding."""
    found = {}
    for scale, size in itertools.product((4, 2), ("tiny", "base", "large")):
        own, model = f"mobile_sr_{size}_x{scale}", f"weights/rlfn_x{scale}.pth"
        kinds = {
            "none": _without_teacher(),
            "l1": [f"teacher={{model: {model}}}"],
            "own": [f"teacher={{model: {own}}}"],
            "l1_and_own": [
                "teacher=null",
                f"teachers=[{{name: large, model: {model}}}, {{name: own, model: {own}}}]",
                "losses=[{type: l1, against: hr, weight: 0.4}, {type: l1, against: teacher, teacher: large, weight: 0.4}, "
                "{type: l1, against: teacher, teacher: own, weight: 0.2}]",
            ],
        }
        shape = [f"scale={scale}", f"student={{type: mobile_sr_{size}, color: y}}", f"init_from={own}"]
        found |= {f"{size}_x{scale}_{kind}": [*shape, *overrides] for kind, overrides in kinds.items()}
    return found


_RECIPE = OPTIONS / "mobile_sr_recipe_x4.yml"
STUDIES = {
    "losses": Study(OPTIONS / "mobile_sr_losses_x4.yml", LOSSES, "none"),
    "teacher": Study(_RECIPE, _teacher_variants(), "none"),
    "family": Study(_RECIPE, FAMILY, "soap_whole", ("psnr", "ssim")),
    "int8": Study(OPTIONS / "mobile_sr_int8_x4.yml", _int8_variants(), "none", ("psnr", "ssim"), int8=True),
    "search": Study(_RECIPE, SEARCH, "base", ("psnr", "ssim")),
}


class Runs:
    """The runs of a study, and what was measured of them."""

    def __init__(self, name: str) -> None:
        self.name, self.study, self.path = name, STUDIES[name], RESULTS / f"{name}.json"

    def options_of(self, variant: str, seed: int = 0) -> tuple[RunOptions, list[str]]:
        """The options of a run, and the overrides that make them."""
        folder = f"output_dir=experiments/study/{self.name}"
        overrides = [f"name={variant}_{seed}", f"seed={seed}", folder, *self.study.variants[variant]]
        return load_options(self.study.options, overrides), overrides

    @property
    def results(self) -> dict[str, dict[str, dict]]:
        """What was measured: by variant, seed and set."""
        return json.loads(self.path.read_text()) if self.path.exists() else {}

    def run(self, variants: Sequence[str], seeds: Sequence[int], part: tuple[int, int]) -> None:
        """Train and measure each variant with each seed, unless its results are there."""
        todo = [(variant, seed) for seed in seeds for variant in variants]
        for variant, seed in todo[part[0] :: part[1]]:
            if str(seed) in self.results.get(variant, {}):
                continue
            options, overrides = self.options_of(variant, seed)
            folder, started = Path(options.output_dir) / options.name, time.perf_counter()
            resume = ["--resume"] if (folder / "options.yml").exists() else []
            if train(["-opt", str(self.study.options), *overrides, *resume]):
                raise SystemExit(1)
            seconds = time.perf_counter() - started
            ended = RunFolder(
                folder
            )  # the last student, not the one that did best on a set that it is then measured on
            scores = {"seconds": round(seconds, 1), **self.measure(load_model(ended.last()))}
            if options.validation is not None:
                scores["on_the_way"] = {step: round(psnr, 5) for step, psnr in curve(ended).items()}
            results = self.results  # read again: another process may have added its own
            results.setdefault(variant, {})[str(seed)] = scores
            write_json(self.path, results)

    def measure(self, model: SRModel) -> dict[str, dict[str, float]]:
        """Means on each set, by the short names of the metrics."""
        names = {METRICS[metric][0]: metric for metric in self.study.metrics}
        measured = in_runtime(model, "onnx", "int8") if self.study.int8 else model
        scores = mean_scores(measured, SETS, list(names), data_root())
        return {key: {names[name]: round(value, 5) for name, value in means.items()} for key, means in scores.items()}

    def table(self, variants: Sequence[str]) -> None:
        """Print mean and standard deviation over the seeds, and the difference to the base with the same seed."""
        metrics, results = self.study.metrics, self.results
        titles = [f"{name} PSNR-Y" for name in SETS] + [f"difference on {name}" for name in SETS]
        titles += [f"Set14 {m.upper()}" for m in metrics[1:]]
        print("| variant | seeds | " + " | ".join(titles) + " |")
        print("|---|---|" + "---|" * len(titles))
        for variant in variants:
            runs, base = results.get(variant), results.get(self._base_of(variant), {})
            if not runs:
                continue
            seeds = [] if variant == self._base_of(variant) else [seed for seed in runs if seed in base]
            cells = [f"`{variant}`", str(len(runs))]
            cells += [spread([scores[name]["psnr"] for scores in runs.values()], 2) for name in SETS]
            for name in SETS:
                gains = [runs[seed][name]["psnr"] - base[seed][name]["psnr"] for seed in seeds]
                cells.append(spread(gains, 3, sign=True) if gains else "")
            cells += [spread([scores["Set14"][m] for scores in runs.values()], METRICS[m][1]) for m in metrics[1:]]
            print("| " + " | ".join(cells) + " |")

    def way(self, variants: Sequence[str]) -> None:
        """Print the difference to the base with the same seed on Set5, mean and standard deviation over the seeds, step by step."""
        results = self.results
        for variant in variants:
            runs, base = results.get(variant, {}), results.get(self._base_of(variant), {})
            seeds = [seed for seed in runs if seed in base] if variant != self._base_of(variant) else []
            ways = [(runs[seed].get("on_the_way", {}), base[seed].get("on_the_way", {})) for seed in seeds]
            steps = [step for step in (ways[0][0] if ways else {}) if all(step in each for way in ways for each in way)]
            if not steps:
                continue
            print(
                f"| `{variant}`, {len(seeds)} seeds, after steps | " + " | ".join(f"{int(s):,}" for s in steps) + " |"
            )
            print("|---|" + "---|" * len(steps))
            gains = (spread([of[step] - to[step] for of, to in ways], 3, sign=True) for step in steps)
            print("| difference on Set5 | " + " | ".join(gains) + " |\n")

    def _base_of(self, variant: str) -> str:
        """What a variant is compared with: where students differ, the one of the same size and length or scale."""
        several = self.study.base not in self.study.variants
        return "_".join([*variant.split("_")[:2], self.study.base]) if several else self.study.base

    def weigh(self, variants: Sequence[str]) -> None:
        """Print the weight of each variant's term that gives its gradient the share SHARE of L1's."""
        for variant in variants:
            options, _ = self.options_of(variant)
            if len(options.losses) == 2 and options.losses[1].reads_maps and options.losses[1].schedule is None:
                found = _weight(
                    options.model_copy(update={"losses": [options.losses[0], _balanced(options.losses[1])]})
                )
                print(f"{variant}: weight: {found:.1g}", flush=True)


def spread(values: list[float], digits: int, sign: bool = False) -> str:
    """Mean and sample standard deviation."""
    mean = f"{statistics.mean(values):{'+' if sign else ''}.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def _balanced(term: LossOptions) -> LossOptions:
    return term.model_copy(update={"weight": 1.0, "balance": BalanceOptions(ratio=SHARE)})


def _weight(options: RunOptions) -> float:
    """After 100 steps of Adam with L1 alone."""
    torch.manual_seed(0)
    built = build_run(options)
    data, store = options.data, built.open_store(torch.device("cpu"), print)
    batches = StepBatches(store, data.lr_size, data.batch_size, options.seed)
    optimizer = torch.optim.Adam(built.task.parameters(), 1e-3)
    for step in range(_STEPS):
        optimizer.zero_grad()
        built.task(batches[step].to(torch.device("cpu")), {}, [1.0, 0.0])[0].backward()
        optimizer.step()
    coming = (batches[_STEPS + ahead].to(torch.device("cpu")) for ahead in range(BATCHES))
    (weight,) = find_weights(built.task, built.teachers, coming, [1.0, 1.0]).values()
    return weight


def main(arguments: Sequence[str] | None = None) -> int:
    """``study.py STUDY run | table | way | weigh [--variants V ...] [--seeds S ...] [--part I/N]``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("what", choices=["run", "table", "way", "weigh"])
    parser.add_argument("--variants", nargs="+", metavar="V", help="default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="S")
    parser.add_argument("--part", default="0/1", metavar="I/N")
    args = parser.parse_args(arguments)
    runs = Runs(args.study)
    variants = args.variants or list(runs.study.variants)
    unknown = [variant for variant in variants if variant not in runs.study.variants]
    if unknown:
        raise UserError(f"{args.study} has no {', '.join(unknown)}; it has {', '.join(runs.study.variants)}.")
    part = re.fullmatch(r"(\d+)/(\d+)", args.part)
    if part is None or int(part[1]) >= int(part[2]):
        raise UserError(f"--part is {args.part}: it should be I/N, as 0/2 and 1/2 for the two halves.")
    if args.what == "run":
        runs.run(variants, args.seeds, (int(part[1]), int(part[2])))
    elif args.what == "table":
        runs.table(variants)
    elif args.what == "way":
        runs.way(variants)
    else:
        runs.weigh(variants)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
