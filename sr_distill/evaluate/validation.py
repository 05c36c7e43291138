"""How students are measured while they train: on several sets, beside bicubic upscaling and the teachers."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from ..console import progress_bar
from ..contracts import Measured
from ..data.images import to_tensor
from ..data.packed import Upscale, stored_outputs
from ..errors import ImageError, UserError
from ..infer import WholeOutputs
from ..models import ModelSpec, SRModel, Teacher, bicubic_model
from ..options.sections import ValidationOptions
from .metrics import make_metric
from .protocol import evaluate_set
from .sets import open_set


class _Stopped(Exception):
    """Somebody asked to stop in the middle of a validation."""


class Validation:
    """The sets, decoded once, and the metrics.

    Args:
        options: what is measured.
        scale: upscaling factor.
        device: where models run.
        root: data root, below which sets are looked for.

    Attributes:
        judged_by: in words, what decides which student is best.
        higher_is_better: whether the best student has the highest score.

    Raises:
        UserError: there is no such set or metric, or an image of a set cannot be read.
    """

    def __init__(self, options: ValidationOptions, scale: int, device: torch.device, root: Path | None) -> None:
        self._scale, self._device, self._samples = scale, device, options.samples
        self.sets = [open_set(name, scale, root).decoded(scale) for name in options.sets]
        self._metrics = [make_metric(metric, scale) for metric in options.metrics]
        names = [metric.type for metric in options.metrics]
        self._judge = self._metrics[0 if options.best_by is None else names.index(options.best_by)]
        self.judged_by = f"{self._judge.label} on {', '.join(benchmark.name for benchmark in self.sets)}"
        self.higher_is_better = self._judge.higher_is_better

    def measure(self, model: SRModel, stopped: Callable[[], bool] = lambda: False) -> Measured | None:
        """Measure a model; None: ``stopped`` said so.

        Raises:
            UserError: an image cannot be upscaled or measured.
        """
        values: dict[str, float] = {}
        scores, samples = [], {}

        def heed(name: str, sr: Tensor | None) -> None:
            if stopped():
                raise _Stopped
            if sr is not None and benchmark is self.sets[0] and len(samples) < self._samples:
                samples[f"{benchmark.name}_{name.replace('/', '_')}"] = sr

        try:
            with silent_activations(model) as dead:
                for benchmark in self.sets:
                    result = evaluate_set(model, benchmark, self._device, self._metrics, on_image=heed)
                    if result.problems:
                        raise UserError(f"validation on {benchmark.name}: " + " ".join(result.problems))
                    means = {metric.label: result.mean(metric.label) for metric in self._metrics}
                    means = {label: float("inf") if mean is None else mean for label, mean in means.items()}
                    scores.append(means[self._judge.label])
                    before = f"{benchmark.name}_" if len(self.sets) > 1 else ""
                    values |= {f"{before}{label}": mean for label, mean in means.items()}
        except _Stopped:
            return None
        return Measured(sum(scores) / len(scores), values, samples, tuple(dead()))

    def of_bicubic(self) -> Measured:
        """What bicubic upscaling has."""
        return self.measure(bicubic_model(self._scale))

    def of_teacher(self, name: str, teacher: Teacher, cache_dir: Path, quiet: bool = False) -> Measured:
        """What a teacher has; its outputs are stored like those of the training photos, so that they are computed once for all runs.

        Raises:
            UserError: an image cannot be upscaled, or an output cannot be written.
        """
        images = [(image.name, image.load(self._scale)[0]) for benchmark in self.sets for image in benchmark.images]
        keys = [_key(lr) for _, lr in images]

        def output(upscale: Upscale, index: int) -> Tensor:
            try:
                return upscale(images[index][1])
            except ImageError as error:
                raise UserError(f"{images[index][0]}: {error}.") from error

        outputs = WholeOutputs(teacher, self._device)
        bar = functools.partial(progress_bar, desc=f"{name} on the validation images", unit="image", disable=quiet)
        made, _ = stored_outputs(cache_dir, teacher.key, keys, output, outputs.whole, bar, outputs.in_tiles)
        known = {key: to_tensor(made[index]) for index, key in enumerate(keys)}
        return self.measure(SRModel(_Recalled(known), ModelSpec(name, self._scale)).eval())

    def is_better(self, score: float, than: float) -> bool:
        """Whether a score beats another; one that is no number is worse than any."""
        if math.isnan(than):
            return True
        return score > than if self.higher_is_better else score < than


@contextmanager
def silent_activations(model: nn.Module) -> Iterator[Callable[[], list[str]]]:
    """Watch the activation functions of a model; gives a function that names those that gave nothing but 0 since."""
    largest: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, Tensor):
                peak = output.detach().abs().amax()
                largest[name] = torch.maximum(largest[name], peak) if name in largest else peak

        return hook

    modules = [(n, m) for n, m in model.named_modules() if type(m).__module__ == "torch.nn.modules.activation"]
    handles = [module.register_forward_hook(watch(name)) for name, module in modules]
    try:
        yield lambda: [name.removeprefix("net.") for name, peak in largest.items() if peak == 0]
    finally:
        for handle in handles:
            handle.remove()


class _Recalled(nn.Module):
    """Known outputs in the place of the network that made them."""

    def __init__(self, outputs: dict[str, Tensor]) -> None:
        super().__init__()
        self._outputs = outputs

    def forward(self, lr: Tensor) -> Tensor:
        """RGB (B, 3, h, w) in [0, 1] of known images to what was made of them."""
        pixels = lr.mul(255).round().byte().cpu()
        return torch.stack([self._outputs[_key(image)] for image in pixels]).to(lr.device).float() / 255


def _key(lr: Tensor) -> str:
    """A hash of an LR image, uint8 (3, h, w)."""
    size = "x".join(map(str, lr.shape))
    return hashlib.sha256(f"LR {size} ".encode() + lr.contiguous().numpy().tobytes()).hexdigest()[:32]
