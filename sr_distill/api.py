"""The package as a library: what ``import sr_distill as sd`` offers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .data.images import open_image, to_pixels, to_rgb, to_tensor
from .devices import pick_device
from .errors import UserError
from .evaluate import evaluate_set, make_metric, open_set
from .export import open_in
from .files import data_root
from .infer import upscale as upscale_tensor
from .models import SRModel
from .options import RunOptions, load_options, validate
from .options.architectures import ArchitectureOptions
from .train import RunFolder
from .training import train_run

DEFAULT_MODEL = "mobile_sr_base_x4"
"""What upscales where nobody says by what."""

ImageLike = Any  # a path, a PIL image, a NumPy array or a tensor


def open_model(
    name: str | Path, scale: int | None = None, architecture: str | Mapping[str, Any] | None = None
) -> SRModel:
    """Open a model: ``sd.open_model("mobile_sr_tiny_x4")``.

    Args:
        name: of the zoo, or a path: our .safetensors, the folder or a checkpoint of a training run, a published checkpoint, an exported
            folder.
        scale: the scale that is wanted; None: whatever the file says.
        architecture: for a checkpoint that is not recognised: the name of its network, or a mapping of its options with a ``type``.

    Returns:
        In eval mode, on the CPU; takes RGB (B, 3, H, W) in [0, 1] of any size.

    Raises:
        UserError: there is no such model, or it cannot be read.
    """
    tree = {"type": architecture} if isinstance(architecture, str) else architecture
    network = None if tree is None else validate(ArchitectureOptions, dict(tree), "architecture")
    return open_in(str(name), scale, architecture=network)


def upscale(
    image: ImageLike, model: SRModel | str | Path = DEFAULT_MODEL, device: str = "auto", tile: int = 256
) -> ImageLike:
    """Upscale an image: ``sd.upscale("photo.jpg").save("large.png")``.

    Args:
        image: a path or a PIL image (gives a PIL image); a NumPy array (H, W), (H, W, 1) or (H, W, 3), uint8, or floats in [0, 1]; or a
            tensor (3, H, W) or (B, 3, H, W), uint8, or floats in [0, 1]. The result is of the kind, the shape and the type that was given.
        model: a model, or what :func:`open_model` takes.
        device: auto, cpu, cuda, cuda:N or mps.
        tile: side of the tiles that a large image is cut into, in its pixels; 0: never.

    Raises:
        UserError: the image is of another kind, shape or range, or cannot be read.
    """
    network = model if isinstance(model, SRModel) else open_model(model)
    place = pick_device(device)

    def run(pixels: Tensor) -> Tensor:
        return upscale_tensor(network, pixels, place, tile)

    if isinstance(image, (str, Path)):
        image = open_image(Path(image))
    if isinstance(image, Image.Image):
        return Image.fromarray(to_pixels(run(to_tensor(to_rgb(image)))))
    if isinstance(image, np.ndarray):
        return _of_array(image, run)
    if isinstance(image, Tensor):
        return _of_tensor(image, run)
    raise UserError(
        f"an image is a path, a PIL image, a NumPy array or a tensor, and this is a {type(image).__module__}.{type(image).__qualname__}."
    )


def evaluate(
    model: SRModel | str | Path,
    sets: str | Sequence[str] = "Set5",
    metrics: Sequence[str] = ("psnr_y", "ssim_y"),
    device: str = "auto",
    data_folder: str | Path | None = None,
) -> dict[str, dict[str, float]]:
    """Measure a model by the protocol of the papers: ``sd.evaluate("mobile_sr_tiny_x4", "Set5")["Set5"]["psnr_y"]``.

    Args:
        model: a model, or what :func:`open_model` takes.
        sets: names of sets below ``data_folder``, folders, or 'embedded'.
        metrics: names, see ``sr-distill evaluate --help``.
        device: auto, cpu, cuda, cuda:N or mps.
        data_folder: with benchmarks/; None: SR_DISTILL_DATA.

    Returns:
        The mean over the images, by set and metric.

    Raises:
        UserError: there is no such set or metric, or an image cannot be measured.
    """
    network = model if isinstance(model, SRModel) else open_model(model)
    root = data_root() if data_folder is None else Path(data_folder)
    scale, means = network.spec.scale, {}
    for name in [sets] if isinstance(sets, str) else sets:
        measured = [make_metric(metric, scale) for metric in metrics]
        benchmark = open_set(name, scale, root)
        result = evaluate_set(network, benchmark, pick_device(device), measured)
        if result.problems:
            raise UserError(" ".join(result.problems))
        means[name] = {metric: result.mean(one.label) for metric, one in zip(metrics, measured)}
    return means


def train(
    options: RunOptions | Mapping[str, Any] | str | Path, resume: bool = False, allow_changes: Sequence[str] = ()
) -> SRModel:
    """Train a student as the command does: ``student = sd.train("options/embedded/l1/mobile_sr_from_edsr_x4.yml")``.

    Args:
        options: a YAML file, or what stands in one.
        resume: go on from the last checkpoint.
        allow_changes: with ``resume``, keys of options that may have changed since the run was started.

    Returns:
        The student: the best in validation, else the last; all files are in ``<output_dir>/<name>/``.

    Raises:
        UserError: an option is wrong, or something that the user can put right.
        sr_distill.train.Interrupted: Ctrl-C; a checkpoint was saved.
    """
    if isinstance(options, (str, Path)):
        options = load_options(options)
    elif not isinstance(options, RunOptions):
        options = validate(RunOptions, dict(options), "options")
    train_run(options, resume, allow_changes)
    return open_model(RunFolder(Path(options.output_dir) / options.name).path)


def _of_array(image: np.ndarray, run: Callable[[Tensor], Tensor]) -> np.ndarray:
    """An array in, an array of its kind out."""
    gray = image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 1)
    if not gray and (image.ndim != 3 or image.shape[2] != 3):
        raise UserError(f"an array is (H, W), (H, W, 1) or (H, W, 3), and this is {image.shape}.")
    channels = torch.from_numpy(np.ascontiguousarray(image)).reshape(*image.shape[:2], -1).permute(2, 0, 1)
    large = _of_tensor(channels.expand(3, -1, -1), run)
    if not gray:
        return large.permute(1, 2, 0).contiguous().numpy()
    mean = large.double().mean(0)
    mean = (mean if large.is_floating_point() else mean.round()).to(large.dtype)
    return mean.reshape(*mean.shape, *image.shape[2:]).numpy()


def _of_tensor(image: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
    """A tensor in, a tensor of its shape and type out, on its device."""
    if image.ndim not in (3, 4) or image.shape[-3] != 3 or not image.numel():
        raise UserError(f"a tensor is (3, H, W) or (B, 3, H, W), and this is {tuple(image.shape)}.")
    if image.is_floating_point():
        least, largest = float(image.min()), float(image.max())
        if not (least >= 0 and largest <= 1):
            raise UserError(
                f"floats are in [0, 1], and these go from {least:g} to {largest:g}: divide by 255, or give uint8."
            )
    elif image.dtype != torch.uint8:
        raise UserError(f"values are uint8, or floats in [0, 1], and these are {image.dtype}.")
    large = torch.stack([run(one) for one in image.reshape(-1, *image.shape[-3:])]).to(image.device)
    return large.reshape(*image.shape[:-2], *large.shape[-2:])
