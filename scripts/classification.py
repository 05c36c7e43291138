"""What does a teacher bring to a small classifier? The classic ways of distillation, on scikit-learn's handwritten digits.

classification.py run [--seeds N] [--variants V ...]    train and measure what is not measured yet (eight minutes on one core)
classification.py table                                 print the results so far as Markdown

Every student is the same network, knows the labels of the same 60 images and takes the same steps; a teacher knew the labels of all 1297
images that are not for testing, those of the ensemble a third of them each. What was measured stands in docs/studies/classification.json.
With --on validation 1000 of these images are for training, and accuracy is measured on the other 297, as was done (with --first 100) to
choose the weights below: give another --file with it.
"""

import argparse
import functools
import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn

import sr_distill as sd
from sr_distill.cli.common import run_command
from sr_distill.errors import UserError
from sr_distill.files import write_json
from sr_distill.losses import decoupled

RESULTS = Path(__file__).resolve().parents[1] / "docs/studies/classification.json"
LABELLED, UNLABELLED, BATCH = 60, 64, 64  # images of a student's step; of a step with all labels
STEPS, TEACHER_STEPS = 300, 400
LEARNING_RATE, TEACHER_LEARNING_RATE = 5e-3, 2e-3
WHOLE, PARTS = (
    "teacher",
    ("part_0", "part_1", "part_2"),
)  # a teacher with all labels, and three with a third of them each
NO_LABEL = -100  # what cross_entropy leaves out


class Network(nn.Module):
    """Convolutions in two resolutions (``early``, ``middle``), their mean over the image (``hidden``), logits (``head``)."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.early = nn.Sequential(*_convolutions(1, width, depth), nn.MaxPool2d(2))
        self.middle = nn.Sequential(*_convolutions(width, 2 * width, depth))
        self.hidden = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(2 * width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1, 8, 8) to logits (B, 10)."""
        return self.head(self.hidden(self.middle(self.early(images))))


def _convolutions(inputs: int, outputs: int, depth: int) -> Iterator[nn.Module]:
    for index in range(depth):
        yield nn.Conv2d(outputs if index else inputs, outputs, 3, padding=1, bias=False)
        yield nn.BatchNorm2d(outputs)
        yield nn.ReLU()


def _student() -> Network:
    return Network(width=8, depth=1)


def _teacher() -> Network:
    return Network(width=16, depth=2)


@dataclass(frozen=True)
class Digits:
    """Images (N, 1, 8, 8) in [0, 1] and labels; which of them may be trained on, and on which accuracy is measured."""

    images: Tensor
    labels: Tensor
    pool: Tensor
    held_out: Tensor

    def few(self, seed: int) -> Tensor:
        """Those of the pool whose labels a student knows: as many of each digit."""
        order = self.pool[torch.randperm(len(self.pool), generator=torch.Generator().manual_seed(seed))]
        return torch.cat([order[self.labels[order] == digit][: LABELLED // 10] for digit in range(10)])

    def accuracy(self, *networks: nn.Module) -> float:
        """Of the mean of their logits, in percent."""
        with torch.no_grad():
            logits = sum(network.eval()(self.images[self.held_out]) for network in networks)
        return (logits.argmax(1) == self.labels[self.held_out]).double().mean().item() * 100


@functools.cache
def load_digits(held_out: str = "test") -> Digits:
    """1797 images in an order that is always the same: 500 for the test, 297 for validation, 1000."""
    try:
        from sklearn import datasets
    except ImportError:
        raise UserError("scikit-learn is not installed: pip install scikit-learn.") from None
    images, labels = map(torch.from_numpy, datasets.load_digits(return_X_y=True))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    test, validation, rest = order[:500], order[500:797], order[797:]
    parts = {"test": (torch.cat([validation, rest]), test), "validation": (rest, validation)}
    return Digits(images.float().view(-1, 1, 8, 8) / 16, labels.long(), *parts[held_out])


@dataclass(frozen=True)
class Variant:
    """A way to train the student.

    Attributes:
        title: what it is.
        losses: of the distiller.
        teachers: names of those that it has.
    """

    title: str
    losses: Sequence[Mapping[str, object]]
    teachers: Sequence[str] = (WHOLE,)


def decoupled_without_labels(student: Tensor, teacher: Tensor) -> Tensor:
    """Most images have no label: the right class is what the teacher says."""
    return decoupled(student, teacher, teacher.argmax(1), beta=2.0)


_HARD = {"type": "cross_entropy"}
_SOFT = {"type": "hard_soft", "alpha": 0.9, "temperature": 4.0}
ALONE = Variant("student alone", [_HARD], teachers=())
VARIANTS = {
    "kl": Variant("soft targets, KL", [_SOFT]),
    "mse": Variant("soft targets, squared difference", [{**_SOFT, "kind": "mse", "t_squared": True}]),
    "logits": Variant("squared difference of logits", [_HARD, {"type": "logits"}]),
    "cosine": Variant(
        "cosine of hidden vectors",
        [_HARD, {"type": "cosine", "pairs": {"hidden": "hidden"}, "adapter": "linear", "weight": 30.0}],
    ),
    "regressor": Variant(
        "regressor between middle layers",
        [_HARD, {"type": "fitnet", "pairs": {"middle": "middle"}, "adapter": "conv3x3", "weight": 10.0}],
    ),
    "decoupled": Variant(
        "decoupled", [_HARD, {"function": decoupled_without_labels, "against": "teacher", "name": "decoupled"}]
    ),
    "dist": Variant("DIST", [_HARD, {"type": "dist", "temperature": 4.0}]),
    "part": Variant("soft targets of a teacher with a third of the labels, KL", [_SOFT], PARTS[:1]),
    "ensemble": Variant("soft targets of three such teachers, KL", [_SOFT], PARTS),
}


def train(
    distiller: sd.ModuleDistiller, batches: Iterator[tuple[Tensor, Tensor]], steps: int, learning_rate: float
) -> None:
    """Adam, the learning rate falling to 0 (cosine)."""
    optimizer = torch.optim.Adam(distiller.parameters(), learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    distiller.train()
    for _, (images, labels) in zip(range(steps), batches):
        total, _ = distiller(images, labels=labels)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        schedule.step()
    distiller.eval()


def train_teacher(digits: Digits, name: str, seed: int, steps: int = TEACHER_STEPS) -> nn.Module:
    """With all labels of the pool, or a third of them."""
    kind = [WHOLE, *PARTS].index(name)
    torch.manual_seed(4 * seed + kind)
    network, known = _teacher(), digits.pool if name == WHOLE else digits.pool[kind - 1 :: len(PARTS)]
    train(sd.ModuleDistiller(network, None, [_HARD]), _random(digits, known, seed), steps, TEACHER_LEARNING_RATE)
    return network


def train_student(
    digits: Digits,
    variant: Variant,
    teachers: Mapping[str, nn.Module],
    seed: int,
    unlabelled: bool = False,
    steps: int = STEPS,
) -> nn.Module:
    """With few labels, of which every step sees all; ``unlabelled``: and as many other images of the pool, at random."""
    torch.manual_seed(seed)
    network = _student()
    distiller = sd.ModuleDistiller(network, teachers, variant.losses, example=digits.images[:2])
    train(distiller, _few(digits, seed, unlabelled), steps, LEARNING_RATE)
    return network


def train_student_with_all_labels(digits: Digits, seed: int, steps: int = STEPS) -> nn.Module:
    """What the student could be."""
    torch.manual_seed(seed)
    network = _student()
    train(sd.ModuleDistiller(network, None, [_HARD]), _random(digits, digits.pool, seed), steps, LEARNING_RATE)
    return network


def _random(digits: Digits, among: Tensor, seed: int, size: int = BATCH) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        chosen = among[torch.randint(len(among), (size,), generator=generator)]
        yield digits.images[chosen], digits.labels[chosen]


def _few(digits: Digits, seed: int, unlabelled: bool) -> Iterator[tuple[Tensor, Tensor]]:
    few = digits.few(seed)
    for images, labels in _random(digits, digits.pool, seed, UNLABELLED if unlabelled else 0):
        more = torch.full_like(labels, NO_LABEL)
        yield torch.cat([digits.images[few], images]), torch.cat([digits.labels[few], more])


_UNLABELLED = "_unlabelled"  # follows the name of a variant that saw images without labels, too
_TEACHERS = {"teacher": (WHOLE,), "part_teacher": PARTS[:1], "ensemble_teachers": PARTS}
_REFERENCES = {
    "all_labels": "the student's network with all labels",
    "teacher": "the teacher",
    "part_teacher": "a teacher with a third of the labels",
    "ensemble_teachers": "the mean of three such teachers",
}
_HEADER = f"| trained with | {LABELLED} labelled images | difference | and unlabelled ones | difference |"


class Runs:
    """The runs of the study, and what was measured of them: accuracies in percent, by name and seed."""

    def __init__(self, path: Path = RESULTS, held_out: str = "test") -> None:
        self.path, self.digits = path, load_digits(held_out)
        # Every seed has teachers of its own.
        self._teacher = functools.cache(lambda name, seed: train_teacher(self.digits, name, seed))

    @property
    def results(self) -> dict[str, dict[str, float]]:
        """What was measured."""
        return json.loads(self.path.read_text()) if self.path.exists() else {}

    def run(self, variants: Sequence[str], seeds: Sequence[int]) -> None:
        """Train and measure what is not there."""
        students = [name for variant in variants for name in (variant, f"{variant}{_UNLABELLED}")]
        for seed in seeds:
            for name in ["alone", *students, *_REFERENCES]:
                results = self.results
                if str(seed) not in results.setdefault(name, {}):
                    results[name][str(seed)] = round(self.digits.accuracy(*self._networks(name, seed)), 2)
                    print(f"{name}, seed {seed}: {results[name][str(seed)]:.1f} %", flush=True)
                    write_json(self.path, results)

    def _networks(self, name: str, seed: int) -> Sequence[nn.Module]:
        if name == "all_labels":
            return [train_student_with_all_labels(self.digits, seed)]
        if name in _TEACHERS:
            return [self._teacher(teacher, seed) for teacher in _TEACHERS[name]]
        kind = name.removesuffix(_UNLABELLED)
        variant = ALONE if kind == "alone" else VARIANTS[kind]
        teachers = {teacher: self._teacher(teacher, seed) for teacher in variant.teachers}
        return [train_student(self.digits, variant, teachers, seed, unlabelled=name != kind)]

    def table(self) -> str:
        """Mean and standard deviation over the seeds, also of the differences to the student alone with the same seed."""
        rows = [self._row(ALONE.title, "alone")]
        rows += [self._row(variant.title, name, f"{name}{_UNLABELLED}") for name, variant in VARIANTS.items()]
        rows += [self._row(title, name) for name, title in _REFERENCES.items()]
        return "\n".join([_HEADER, "|---|---|---|---|---|", *rows])

    def _row(self, title: str, *names: str) -> str:
        cells = [title]
        for name in names:
            values, alone = self.results.get(name, {}), self.results.get("alone", {})
            # What a seed changes for all of them, as the images with a label, is not in the differences.
            gains = [values[seed] - alone[seed] for seed in values if seed in alone] if len(names) > 1 else []
            cells += [_spread(list(values.values())), _spread(gains, sign=True)]
        return "| " + " | ".join(cells + [""] * (5 - len(cells))) + " |"


def _spread(values: Sequence[float], sign: bool = False) -> str:
    """Mean and sample standard deviation."""
    if not values:
        return ""
    mean = f"{statistics.mean(values):{'+' if sign else ''}.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def main(arguments: Sequence[str] | None = None) -> int:
    """``classification.py run | table``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="how many; default: 5")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="the first of them; default: 0")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="V")
    parser.add_argument(
        "--on", choices=["test", "validation"], default="test", help="images that accuracy is measured on"
    )
    parser.add_argument("--file", type=Path, default=RESULTS, metavar="JSON", help="where the results are")
    args = parser.parse_args(arguments)
    if args.on == "validation" and args.file == RESULTS:
        raise UserError(f"{RESULTS.name} holds results on the test images: give another --file.")
    runs = Runs(args.file, args.on)
    if args.what == "run":
        runs.run(args.variants, range(args.first, args.first + args.seeds))
    print(runs.table())
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)  # networks this small gain nothing from more
    sys.exit(run_command(main))
