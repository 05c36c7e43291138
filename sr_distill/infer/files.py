"""Upscale image files."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..data.bicubic import imresize
from ..data.images import list_images, open_image, to_pixels, to_rgb, to_tensor, write_png
from ..errors import UserError
from ..models import SRModel
from .upscale import upscale

_GRAY = ("1", "L", "LA", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")


def find_inputs(path: Path) -> list[Path]:
    """The image files named by a file or a folder (searched recursively).

    Raises:
        UserError: it does not exist, or the folder holds no image.
    """
    if path.is_dir():
        files = list_images(path)
        if not files:
            raise UserError(f"{path}: no image found in this folder or below it.")
        return files
    if not path.exists():
        raise UserError(f"{path}: there is no such file or folder.")
    return [path]


def output_paths(files: list[Path], source: Path, folder: Path, scale: int) -> list[Path]:
    """Where each result goes: ``folder/NAME_xS.png``, below the same subfolders as in ``source``.

    Two files that differ in the extension only keep it in the name, so that none overwrites the other.
    """
    base = source if source.is_dir() else source.parent
    names = [file.relative_to(base) for file in files]
    plain = [name.with_name(f"{name.stem}_x{scale}.png") for name in names]
    clash = {path for path in plain if plain.count(path) > 1}
    return [
        folder / (name.with_name(f"{name.stem}_{name.suffix[1:]}_x{scale}.png") if path in clash else path)
        for name, path in zip(names, plain)
    ]


def upscale_file(
    model: SRModel,
    source: Path,
    target: Path,
    device: torch.device,
    tile: int,
    say: Callable[[str], object] = warnings.warn,
) -> tuple[int, int]:
    """Upscale one image file to a PNG; returns its width and height.

    Gray stays gray; transparency is upscaled by bicubic; 16 bits become 8; the EXIF orientation is applied. ``tile`` and
    ``say`` are those of :func:`upscale`.

    Raises:
        UserError: the file cannot be read, or the result cannot be written.
    """
    image = open_image(source)
    pixels = to_pixels(upscale(model, to_tensor(to_rgb(image)), device, tile, say))
    if image.mode in _GRAY:
        pixels = np.asarray(Image.fromarray(pixels).convert("L"))
    alpha = _alpha(image)
    if alpha is not None:
        large = imresize(torch.from_numpy(alpha).double(), model.spec.scale).round_().clamp_(0, 255).byte().numpy()
        channels = pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2)
        pixels = np.dstack([channels, large])
    write_png(target, pixels)
    return pixels.shape[1], pixels.shape[0]


def _alpha(image: Image.Image) -> np.ndarray | None:
    """Transparency as uint8 (H, W), None for an opaque image."""
    if "A" not in image.getbands() and "transparency" not in image.info:
        return None
    return np.array(image.convert("RGBA").getchannel("A"))
