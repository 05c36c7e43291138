"""Measure models on benchmark sets by the protocol of the papers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..data.color import gray_to_luma, rgb_to_gray
from ..data.images import to_uint8
from ..devices import is_out_of_memory
from ..errors import ImageError, UserError
from ..models import SRModel, upscale_uint8
from .measures import ImagePair, psnr_of_luma, psnr_y
from .metrics import Heading, ScaledMetric, make_metric
from .sets import BenchmarkImage, BenchmarkSet, open_set

AGREEMENT = "psnr_y_to_teacher"
"""The label of the PSNR of a model's output against the teacher's."""

LUMA_OUTPUT = "psnr_of_luma_output"
"""The label of the PSNR of what a luma network itself puts out."""


@dataclass(frozen=True)
class Extra:
    """What is measured beside the metrics, on some models only: what people call it, and its sentence."""

    heading: Heading
    text: str


EXTRAS = {
    LUMA_OUTPUT: Extra(
        Heading("PSNR of the luma output", "dB"),
        "PSNR of what a luma network itself puts out, Y rounded to 8 bits, against HR's Y rounded to 8 bits, as papers on luma "
        "networks print it; psnr_y is that of the RGB image that a user gets; a border of {scale} cut off.",
    ),
    AGREEMENT: Extra(
        Heading("PSNR to the teacher", "dB"),
        "PSNR-Y of the output against the teacher's output, a border of {scale} cut off.",
    ),
}
"""Every extra by its label."""


def describe_protocol(scale: int, metrics: Sequence[ScaledMetric], extras: Sequence[str] = ()) -> list[str]:
    """The protocol in sentences, printed with every table."""
    lines = [
        "Per image, then the mean over images; output clipped and rounded to 8 bits. Gray images are converted like colour ones.",
        "LR: the set's own files (MATLAB bicubic), or made here in the same way, to the bit.",
        *(
            f"{metric.label}: {metric.text}{'' if metric.higher_is_better else ' Lower is better.'}"
            for metric in metrics
        ),
    ]
    return lines + [f"{extra}: {EXTRAS[extra].text.format(scale=scale)}" for extra in extras]


@dataclass(frozen=True)
class Score:
    """What was measured on one image, by the label of the metric."""

    image: str
    values: Mapping[str, float]


@dataclass
class SetResult:
    """One model on one set: a score per image, and sentences about images that could not be measured."""

    model: str
    set: str
    scores: list[Score] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def mean(self, label: str) -> float | None:
        """Mean over images. Infinite PSNRs (identical images) are left out; None if nothing is left.

        Args:
            label: of a metric, with or without its convention: psnr_y_b4 or psnr_y.
        """
        values = [_find(score.values, label) for score in self.scores]
        kept = [value for value in values if value is not None and value != float("inf")]
        return sum(kept) / len(kept) if kept else None


def default_metrics(scale: int, lpips: str | None = None) -> list[ScaledMetric]:
    """PSNR-Y and SSIM-Y, and LPIPS with this backbone."""
    names = ["psnr_y", "ssim_y", *([f"lpips_{lpips}"] if lpips else [])]
    return [make_metric(name, scale) for name in names]


@torch.no_grad()
def evaluate_set(
    model: SRModel,
    benchmark: BenchmarkSet,
    device: torch.device,
    metrics: Sequence[ScaledMetric] | None = None,
    teacher: Mapping[str, Tensor] | None = None,
    on_image: Callable[[str, Tensor | None], None] = lambda name, sr: None,
    share: tuple[int, int] = (0, 1),
    luma_output: bool = False,
) -> SetResult:
    """Measure one model on one set.

    An image that cannot be measured is put down in ``problems``, and the others are measured all the same. Images of one size go
    through the network and the metrics together.

    Args:
        model: in eval mode; moved to ``device``.
        metrics: what is measured; None: PSNR-Y and SSIM-Y.
        teacher: the teacher's outputs, uint8 (3, H, W) by image: how far the model is from them is measured, too.
        on_image: called with each image's name, and the model's output if there is one, when it is done.
        share: (rank, number of processes): only this process's batches are measured.
        luma_output: of a luma network, measure what it puts out itself, too (:data:`LUMA_OUTPUT`); it runs twice then.
    """
    model = model.to(device)
    metrics = default_metrics(model.spec.scale) if metrics is None else metrics
    result = SetResult(model.spec.name, benchmark.name)
    for batch in benchmark.batches()[share[0] :: share[1]]:
        for name, outcome, sr in _measure(model, batch, device, metrics, teacher or {}, luma_output):
            if isinstance(outcome, str):
                result.problems.append(outcome)
            else:
                result.scores.append(Score(name, outcome))
            on_image(name, sr)
    order = {image.name: index for index, image in enumerate(benchmark.images)}
    result.scores.sort(key=lambda score: order[score.image])
    return result


def mean_scores(
    model: SRModel, sets: Sequence[str], metrics: Sequence[str], root: Path | None
) -> dict[str, dict[str, float]]:
    """Means of metrics by set and by the metric's name, measured on the CPU.

    Raises:
        UserError: there is no such set or metric, or an image cannot be measured.
    """
    scores = {}
    for name in sets:
        chosen = [make_metric(metric, model.spec.scale) for metric in metrics]
        result = evaluate_set(model, open_set(name, model.spec.scale, root), torch.device("cpu"), chosen)
        if result.problems:
            raise UserError(" ".join(result.problems))
        scores[name] = {metric: result.mean(metric) for metric in metrics}
    return scores


Outcome = tuple[str, "dict[str, float] | str", "Tensor | None"]
"""An image's name; its scores, or a sentence about why there are none; the model's output, if there is one."""


def _measure(
    model: SRModel,
    images: Sequence[BenchmarkImage],
    device: torch.device,
    metrics: Sequence[ScaledMetric],
    teacher: Mapping[str, Tensor],
    luma_output: bool,
) -> list[Outcome]:
    """Each image's outcome. If a batch fails, its images are tried one by one, so that only those that must fail do."""
    loaded, outcomes = [], []
    for image in images:
        try:
            loaded.append((image, *image.load(model.spec.scale)))
        except UserError as error:
            outcomes.append((image.name, str(error), None))
    alone = len(loaded) == 1
    if alone or len({lr.shape for _, lr, _ in loaded}) == 1:
        try:
            return outcomes + _scored(model, loaded, device, metrics, teacher, luma_output)
        except Exception as error:
            if not isinstance(error, UserError) and not is_out_of_memory(error):
                raise  # a mistake in a metric or a network, not in an image
            if alone:
                return [*outcomes, (loaded[0][0].name, _reason(error, loaded[0][0], model, device), None)]
    return outcomes + [
        o for image, _, _ in loaded for o in _measure(model, [image], device, metrics, teacher, luma_output)
    ]


def _reason(error: Exception, image: BenchmarkImage, model: SRModel, device: torch.device) -> str:
    if is_out_of_memory(error):
        return f"{image.hr}: not enough memory on {device} for {model.spec.name} on this image."
    return f"{image.hr}: {str(error).rstrip('.')}." if isinstance(error, ImageError) else str(error)


def _scored(
    model: SRModel,
    loaded: Sequence[tuple[BenchmarkImage, Tensor, Tensor]],
    device: torch.device,
    metrics: Sequence[ScaledMetric],
    teacher: Mapping[str, Tensor],
    luma_output: bool,
) -> list[Outcome]:
    """Scores of images of one size."""
    try:
        lr = torch.stack([lr for _, lr, _ in loaded])
        sr = upscale_uint8(model, lr, device)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise ImageError(f"the network cannot take it ({' '.join(str(error).split())[:200]})") from error
    hr = torch.stack([hr for _, _, hr in loaded]).to(device)
    if device.type == "mps":  # has no float64
        sr, hr = sr.cpu(), hr.cpu()
    pair = ImagePair(sr, hr)
    columns = {metric.label: metric.measure(pair) for metric in metrics}
    names = [image.name for image, _, _ in loaded]
    if luma_output and model.spec.color == "y":
        columns[LUMA_OUTPUT] = psnr_of_luma(_luma_output(model, lr.to(device)).to(sr.device), hr, model.spec.scale)
    if teacher and all(name in teacher for name in names):
        target = torch.stack([teacher[name] for name in names]).to(sr.device)
        columns[AGREEMENT] = psnr_y(sr, target, model.spec.scale)
    rows = zip(*(column.tolist() for column in columns.values()))
    return [(name, dict(zip(columns, row)), one.cpu()) for name, row, one in zip(names, rows, sr)]


def _luma_output(model: SRModel, lr: Tensor) -> Tensor:
    """What a luma network itself makes of uint8 RGB (B, 3, h, w): uint8 Y (B, 1, H, W)."""
    gray = model(rgb_to_gray(lr.float().div(255.0)))
    return to_uint8(gray_to_luma(gray))


def _find(values: Mapping[str, float], label: str) -> float | None:
    if label in values:
        return values[label]
    return next((value for key, value in values.items() if key.rpartition("_b")[0] == label), None)
