"""Benchmark sets: HR images with their LR images, which are made where they are absent."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..data import embedded
from ..data.bicubic import downscale_to_uint8
from ..data.images import image_size, left_out, list_images, read_rgb, to_tensor
from ..data.likeness import unlike
from ..errors import UserError
from ..files import DATA_ROOT_VARIABLE

_LR_FOLDER = "LR_bicubic"


@dataclass(frozen=True)
class BenchmarkImage:
    """One image of a set; ``lr`` is None where LR is made from HR, because the set has none at this scale."""

    name: str
    hr: Path
    lr: Path | None

    def load(self, scale: int) -> tuple[Tensor, Tensor]:
        """LR and HR as uint8 (3, h, w) and (3, h*scale, w*scale); HR is cut to a multiple of the scale first.

        Raises:
            UserError: a file cannot be read, or the sizes do not fit.
        """
        hr = to_tensor(read_rgb(self.hr))
        height, width = (size // scale for size in hr.shape[-2:])
        hr = hr[:, : height * scale, : width * scale]
        if min(height, width) == 0:
            raise UserError(f"{self.hr}: too small for scale {scale}.")
        if self.lr is None:
            return downscale_to_uint8(hr, scale), hr
        if not self.lr.is_file():
            raise UserError(
                f"{self.lr}: this LR image is missing beside the others; python scripts/prepare_datasets.py makes it."
            )
        lr = to_tensor(read_rgb(self.lr))
        if lr.shape[-2:] != (height, width):
            raise UserError(
                f"{self.lr} has {lr.shape[-1]}x{lr.shape[-2]} pixels, but {self.hr} at scale {scale} needs {width}x{height}."
            )
        return lr, hr


@dataclass(frozen=True)
class DecodedImage(BenchmarkImage):
    """One image of a set whose pixels are kept."""

    pixels: tuple[Tensor, Tensor]

    def load(self, scale: int) -> tuple[Tensor, Tensor]:
        """The pixels that are kept."""
        return self.pixels


@dataclass(frozen=True)
class BenchmarkSet:
    """A named list of images, and sentences about what lies beside them and is not read."""

    name: str
    images: list[BenchmarkImage]
    notes: tuple[str, ...] = ()

    def batches(self, most: int = 2**20) -> list[list[BenchmarkImage]]:
        """The images in groups of one size, of at most ``most`` HR pixels together; a larger image is a group of its own.

        An image whose size cannot be read is a group of its own, too.
        """
        groups: list[list[BenchmarkImage]] = []
        open_groups: dict[tuple[int, int], list[BenchmarkImage]] = {}
        for image in self.images:
            size = image_size(image.hr)
            group = open_groups.get(size) if size else None
            if group is None or (len(group) + 1) * size[0] * size[1] > most:
                group = []
                groups.append(group)
                if size:
                    open_groups[size] = group
            group.append(image)
        return groups

    def decoded(self, scale: int) -> BenchmarkSet:
        """The same set with the pixels of all images in memory, for measuring again and again.

        Raises:
            UserError: an image cannot be read, or the sizes do not fit.
        """
        images = [DecodedImage(image.name, image.hr, image.lr, image.load(scale)) for image in self.images]
        return BenchmarkSet(self.name, images)

    def unlike_lr(self, scale: int) -> str | None:
        """A sentence where the set's LR images are of something else than its HR images (:func:`sr_distill.data.likeness.likeness`)."""
        given = [image for image in self.images if image.lr is not None]

        def load(index: int) -> tuple[Tensor, Tensor]:
            return given[index].load(scale)

        try:
            found = unlike(len(given), load, scale)
        except UserError:  # said where the image is measured
            return None
        if found is None:
            return None
        return (
            f"{self.name}: its LR images are not those of its HR images (correlation {found:.2f} with HR made small): they are mirrored, or "
            "numbered otherwise. No row of this set says anything."
        )

    @property
    def made_lr(self) -> int:
        """How many LR images are made from HR."""
        return sum(image.lr is None for image in self.images)


def open_set(name: str, scale: int, root: Path | None) -> BenchmarkSet:
    """Find a benchmark set.

    Args:
        name: 'embedded', a set below ``root/benchmarks`` (or ``root``), or a folder. A set is a folder with ``HR/`` and, if LR is
            there too, ``LR_bicubic/X<scale>/<name>x<scale>.png`` as DIV2K has it, where ``name`` is that of :func:`named_hr`; a folder
            without ``HR/`` is taken as HR images.
        scale: upscaling factor.
        root: data root; None: ``name`` must be 'embedded' or a folder.

    Raises:
        UserError: there is no such set, or it is empty; names the sets that there are.
    """
    if name == embedded.NAME:
        return BenchmarkSet(name, [BenchmarkImage(path.stem, path, None) for path in embedded.held_out_photos()])
    folder = _folder(name, root)
    if is_selfexsr(folder):
        raise UserError(
            f"{folder}: this set is in the layout of SelfExSR; python scripts/prepare_datasets.py NAME --from {folder} converts it."
        )
    images = [BenchmarkImage(name, path, _lr_of(name, folder, scale)) for name, path in named_hr(folder).items()]
    return BenchmarkSet(folder.name, images, tuple(left_out(folder / "HR" if (folder / "HR").is_dir() else folder)))


def _folder(name: str, root: Path | None) -> Path:
    places = ([root / "benchmarks" / name, root / name] if root else []) + [Path(name).expanduser()]
    for place in places:
        if place.is_dir():
            return place
    known = sorted(
        {
            path.name
            for base in places[:-1]
            if base.parent.is_dir()
            for path in base.parent.iterdir()
            if (path / "HR").is_dir()
        }
    )
    there = f" Sets there: {', '.join(known)}." if known else ""
    hint = (
        "" if root else f" Say where benchmarks lie: --data-root DIR, or the environment variable {DATA_ROOT_VARIABLE}."
    )
    raise UserError(f"there is no set '{name}'; looked for {', '.join(str(place) for place in places)}.{there}{hint}")


def named_hr(folder: Path) -> dict[str, Path]:
    """The HR images of a set by name: those in ``HR/``, or those in the folder itself.

    A name is the stem where no other image has it (``a`` of ``a.png``), else the file's name, else its path in the folder.

    Raises:
        UserError: there is none.
    """
    hr_folder = folder / "HR" if (folder / "HR").is_dir() else folder
    images = [path for path in list_images(hr_folder) if _LR_FOLDER not in path.relative_to(folder).parts]
    if not images:
        raise UserError(f"{hr_folder}: this set holds no image.")
    choices = [(path.stem, path.name, path.relative_to(hr_folder).as_posix()) for path in images]
    claims = Counter(name for names in choices for name in set(names))
    return {next((n for n in names if claims[n] == 1), names[-1]): path for names, path in zip(choices, images)}


def is_selfexsr(folder: Path) -> bool:
    """Whether a set lies there in the layout of SelfExSR: ``image_SRF_4/img_001_SRF_4_HR.png``."""
    return any(folder.glob("image_SRF_*/*_HR.png"))


def lr_path(folder: Path, name: str, scale: int) -> Path:
    """Where the LR image of a set's image lies, as DIV2K has it."""
    return folder / _LR_FOLDER / f"X{scale}" / f"{name}x{scale}.png"


def _lr_of(name: str, folder: Path, scale: int) -> Path | None:
    return lr_path(folder, name, scale) if (folder / _LR_FOLDER / f"X{scale}").is_dir() else None
