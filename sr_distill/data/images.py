"""Image files in and out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import UserError
from ..files import atomic_path

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})


def list_images(folder: Path) -> list[Path]:
    """All image files below ``folder``, by extension, sorted; hidden files are left out.

    Raises:
        UserError: ``folder`` is not a folder.
    """
    return sorted_out(folder)[0]


def sorted_out(folder: Path) -> tuple[list[Path], list[Path]]:
    """The image files below ``folder``, by extension, and the other files, both sorted; what is hidden is in neither.

    Raises:
        UserError: ``folder`` is not a folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder.")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    images = [path for path in files if path.suffix.lower() in EXTENSIONS]
    return images, [path for path in files if path.suffix.lower() not in EXTENSIONS]


def left_out(folder: Path) -> list[str]:
    """A sentence about the files below ``folder`` that are not read as images; none where all are."""
    return no_images(folder, sorted_out(folder)[1], f"images are {', '.join(sorted(EXTENSIONS))}")


def no_images(folder: Path, others: Sequence[Path], hint: str, most: int = 5) -> list[str]:
    """A sentence that counts and names files of a folder which are not read as images; none where there are none."""
    if not others:
        return []
    shown = ", ".join(str(path.relative_to(folder)) for path in others[:most])
    more = f" and {len(others) - most} more" if len(others) > most else ""
    return [f"{folder}: {len(others)} file(s) there are not read as images ({shown}{more}); {hint}."]


def open_image(path: Path) -> Image.Image:
    """Decode an image file completely, turned as its EXIF orientation says.

    Raises:
        UserError: names the file and the reason (missing, not an image, cut off, ...).
    """
    try:
        with Image.open(path) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file.") from error
    except Exception as error:
        reason = str(error).replace(f" '{path}'", "").replace(str(path), "the file") or type(error).__name__
        raise UserError(f"{path}: cannot be read as an image ({reason}).") from error


def image_size(path: Path) -> tuple[int, int] | None:
    """Width and height as the file's header has them, without decoding; None if it cannot be read."""
    try:
        with Image.open(path) as image:
            return image.size
    except Exception:
        return None


def to_rgb(image: Image.Image) -> np.ndarray:
    """Pixels as uint8 RGB, shape (H, W, 3); gray is repeated, alpha is dropped, 16 bits are scaled to 8."""
    if image.mode in ("I;16", "I;16B", "I;16L", "I;16N", "I", "F"):
        values = np.asarray(image).astype(np.float64)
        # A 16-bit PNG is opened as I;16, or as I by older versions; F holds 0-1 or 0-255.
        top = 65535.0 if image.mode != "F" else (1.0 if values.max(initial=0) <= 1 else 255.0)
        gray = np.rint(values.clip(0, top) * (255.0 / top)).astype(np.uint8)
        return np.repeat(gray[:, :, None], 3, axis=2)
    return np.array(image.convert("RGB"))


def read_rgb(path: Path) -> np.ndarray:
    """Read an image file as uint8 RGB, shape (H, W, 3).

    Raises:
        UserError: names the file and the reason.
    """
    return to_rgb(open_image(path))


def to_tensor(pixels: np.ndarray) -> Tensor:
    """uint8 (H, W, C) to uint8 (C, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def to_uint8(image: Tensor) -> Tensor:
    """Float in [0, 1] to uint8: clipped, then rounded to the nearest level, as when an image is saved."""
    return image.detach().float().clamp(0, 1).mul(255.0).round().to(torch.uint8)


def to_pixels(image: Tensor) -> np.ndarray:
    """uint8 (C, H, W) on any device to uint8 (H, W, C)."""
    return image.permute(1, 2, 0).contiguous().cpu().numpy()


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write uint8 (H, W), (H, W, 3) or (H, W, 4) as a PNG, atomically.

    Raises:
        UserError: the file cannot be written.
    """
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")
