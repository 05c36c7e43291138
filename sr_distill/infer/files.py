"""Upscale image files."""

from __future__ import annotations

import itertools
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..data.bicubic import imresize
from ..data.images import EXTENSIONS, left_out, list_images, open_image, to_pixels, to_rgb, to_tensor, write_png
from ..errors import ImageError, UserError
from ..models import SRModel
from .upscale import Tile, upscale

_GRAY = ("1", "L", "LA", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")


def find_inputs(paths: Sequence[Path]) -> tuple[dict[Path, Path], list[str]]:
    """The image files that files and folders (searched recursively) name.

    Returns:
        Each file with its name in the output folder, in which folders keep their subfolders; and sentences about files in folders that
        are not read as images.

    Raises:
        UserError: a path does not exist, or a folder holds no image.
    """
    found: dict[Path, Path] = {}
    notes: list[str] = []
    for path in paths:
        if path.is_dir():
            files = list_images(path)
            notes += left_out(path)
            if not files:
                raise UserError(" ".join([f"{path}: no image found in this folder or below it.", *notes]))
            found |= {file: file.relative_to(path) for file in files}
        elif path.exists():
            found[path] = Path(path.name)
        else:
            raise UserError(f"{path}: there is no such file or folder.")
    return found, notes


def output_paths(names: Mapping[Path, Path], output: Path, scale: int) -> dict[Path, Path]:
    """Where the result of each file goes: ``output/NAME_xS.png``, or ``output`` itself where that is a .png and there is one file.

    Files that would have the same name keep their extension in it, or get a number, so that none overwrites another's. What an earlier
    run in the same folder made (``NAME_xS.png`` beside ``NAME``) is left out.

    Args:
        names: files and their names in the output folder, of :func:`find_inputs`.

    Raises:
        UserError: ``output`` is a file and there are several, or it is not a .png.
    """
    if output.is_file() or (output.suffix.lower() in EXTENSIONS and not output.is_dir()):
        return {_only(names, output): output}
    plain = {file: name.with_name(f"{name.stem}_x{scale}.png") for file, name in names.items()}
    made_before = {(output / path).resolve() for path in plain.values()}
    claims = Counter(plain.values())
    targets: dict[Path, Path] = {}
    for file, name in names.items():
        if file.resolve() in made_before:
            continue
        stem = f"{name.stem}_{name.suffix[1:]}" if claims[plain[file]] > 1 else name.stem
        endings = itertools.chain([""], (f"_{number}" for number in itertools.count(2)))
        paths = (output / name.with_name(f"{stem}_x{scale}{ending}.png") for ending in endings)
        targets[file] = next(path for path in paths if path not in targets.values())
    return targets


def _only(names: Mapping[Path, Path], output: Path) -> Path:
    """The one file whose result ``output`` can be."""
    if output.suffix.lower() != ".png":
        raise UserError(f"-o {output}: results are PNG files; name a .png, or a folder.")
    if len(names) > 1:
        raise UserError(f"-o {output} is one file, and there are {len(names)} images: name a folder.")
    (file,) = names
    if file.resolve() == output.resolve():
        raise UserError(f"-o {output} is the image itself: name another file, or a folder.")
    return file


def upscale_file(
    model: SRModel,
    source: Path,
    target: Path,
    device: torch.device,
    tile: int,
    say: Callable[[str], object] = warnings.warn,
    progress: Callable[[Sequence[Tile]], Iterable[Tile]] = iter,
) -> tuple[int, int]:
    """Upscale one image file to a PNG; returns its width and height.

    Gray stays gray; transparency is upscaled by bicubic; 16 bits become 8; the EXIF orientation is applied. ``tile``,
    ``say`` and ``progress`` are those of :func:`upscale`.

    Raises:
        UserError: the file cannot be read, or what the network makes of it is no image, or the result cannot be written.
    """
    image = open_image(source)
    try:
        pixels = to_pixels(upscale(model, to_tensor(to_rgb(image)), device, tile, say, progress))
    except ImageError as error:
        raise UserError(f"{source}: {error}.") from error
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
