"""The package as a library: what ``import sr_distill as sd`` offers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .devices import pick_device
from .errors import UserError
from .evaluate import evaluate_set, make_metric, open_set
from .export import open_for, open_in
from .files import data_root
from .infer import TILE, Enlarger, Picture, Scale, Upscaler, Upscalers, open_picture, parse_scale, picture_of, to_image
from .infer.alpha import Alpha
from .infer.rows import rows_of
from .infer.upscale import Precision
from .models import SRModel
from .options import RunOptions, load_options, validate
from .options.architectures import ArchitectureOptions
from .train import RunFolder
from .training import train_run

DEFAULT_MODEL = "mobile_sr_large_x4"
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
    image: ImageLike,
    model: SRModel | str | Path = DEFAULT_MODEL,
    device: str = "auto",
    tile: int = TILE,
    scale: float | str | None = None,
    alpha: Alpha = "network",
    precision: Precision = "auto",
    self_ensemble: bool = False,
    seamless: bool = False,
) -> ImageLike:
    """Upscale an image: ``sd.upscale("photo.jpg").save("large.png")``.

    Args:
        image: a path or a PIL image (gives a PIL image, gray or with alpha as it was, its profile, EXIF and resolution in ``info``); a NumPy
            array (H, W) or (H, W, C), uint8, uint16, or floats in [0, 1], with C = 1 gray, 2 gray and alpha, 3 RGB, 4 RGB and alpha; or a
            tensor (C, H, W) or (B, C, H, W), uint8, or floats in [0, 1]. The result is of the kind, the shape and the type that was given.
        model: a model, or what :func:`open_model` takes.
        device: auto, cpu, cuda, cuda:N or mps.
        tile: side of the tiles that a large image is cut into, in its pixels; 0: never.
        scale: a factor (1.5, 8) or a size in pixels ("1920x1080", "1920x"), made by the nearest larger network of the model's family, or
            several passes, and antialiased bicubic; None: the model's own.
        alpha: how transparency is upscaled: network or bicubic.
        precision: of the network: fp32, bf16, fp16; auto: fp16 on CUDA, else fp32.
        self_ensemble: the mean over 8 flips and turns, at 8 times the cost.
        seamless: the image is a texture that goes on at its other end.

    Raises:
        UserError: the image is of another kind, shape or range, or cannot be read.
    """
    place = pick_device(device)
    wanted = None if scale is None else parse_scale(str(scale))

    def prepare(network: SRModel) -> Upscaler:
        return Upscaler(network, place, tile, precision, self_ensemble, alpha)

    if isinstance(model, SRModel):
        own = model.spec.scale
        upscalers, wanted = Upscalers([own], lambda each: prepare(model)), wanted or Scale(float(own))
    else:
        upscalers, wanted = open_for(str(model), wanted, prepare)
    enlarger = Enlarger(upscalers, wanted, seamless)
    if isinstance(image, (str, Path)):
        picture = open_picture(Path(image))
        if len(picture.frames) > 1:
            raise UserError(
                f"{image} has {len(picture.frames)} frames or pages, and one image comes out: open it with PIL and give the frame that it "
                "shows, or let 'sr-distill inference' write them all."
            )
        return _of_picture(picture, enlarger)
    if isinstance(image, Image.Image):
        return _of_picture(picture_of(image), enlarger)
    if isinstance(image, np.ndarray):
        return _of_array(image, enlarger)
    if isinstance(image, Tensor):
        return _of_tensor(image, enlarger)
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


def _of_picture(picture: Picture, enlarger: Enlarger) -> Image.Image:
    """A picture in, a PIL image out."""
    large = enlarger(picture)
    return to_image(large.rows, large.metadata)


def _of_array(image: np.ndarray, enlarger: Enlarger) -> np.ndarray:
    """An array in, an array of its kind out."""
    if image.ndim not in (2, 3) or (image.ndim == 3 and not 1 <= image.shape[2] <= 4) or not image.size:
        raise UserError(f"an array is (H, W) or (H, W, C) with 1 to 4 channels, and this is {image.shape}.")
    if image.dtype not in (np.uint8, np.uint16):
        _check_floats(image, np.issubdtype(image.dtype, np.floating))
    pixels = np.ascontiguousarray(image.reshape(*image.shape[:2], -1))
    rows = rows_of(pixels if pixels.dtype in (np.uint8, np.uint16) else pixels.astype(np.float32))
    large = enlarger.rows(rows).whole().astype(image.dtype)
    return large[:, :, 0] if image.ndim == 2 else large


def _of_tensor(image: Tensor, enlarger: Enlarger) -> Tensor:
    """A tensor in, a tensor of its shape and type out, on its device."""
    if image.ndim not in (3, 4) or not 1 <= image.shape[-3] <= 4 or not image.numel():
        raise UserError(
            f"a tensor is (C, H, W) or (B, C, H, W) with 1 to 4 channels, and this is {tuple(image.shape)}."
        )
    if image.dtype != torch.uint8:
        _check_floats(image, image.is_floating_point())
    pixels = (image.float() if image.is_floating_point() else image).detach().cpu().movedim(-3, -1).contiguous().numpy()
    large = np.stack([enlarger.rows(rows_of(one)).whole() for one in pixels.reshape(-1, *pixels.shape[-3:])])
    result = torch.from_numpy(large).movedim(-1, -3).to(image.device, image.dtype)
    return result.reshape(*image.shape[:-2], *result.shape[-2:])


def _check_floats(image: np.ndarray | Tensor, are_floats: bool) -> None:
    """Refuse what is neither bytes nor floats in [0, 1]."""
    if not are_floats:
        raise UserError(f"values are uint8, or floats in [0, 1], and these are {image.dtype}.")
    least, largest = float(image.min()), float(image.max())
    if not (least >= 0 and largest <= 1):
        raise UserError(
            f"floats are in [0, 1], and these go from {least:g} to {largest:g}: divide by 255, or give uint8."
        )
