"""What a run writes down: metrics.jsonl and TensorBoard events."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..data.images import to_pixels, write_png
from ..errors import UserError
from ..files import write_text


class MetricsLog:
    """Appends to ``metrics.jsonl`` and to TensorBoard events. On resume, what lies after ``first_step`` is dropped first.

    A line of metrics.jsonl is an object with ``step``, ``kind`` (train or validation) and the values.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # here: it is slow to import

        self._path = folder / "metrics.jsonl"
        if self._path.exists():
            kept = [
                line for line in self._path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= first_step
            ]
            write_text(self._path, "".join(line + "\n" for line in kept))
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1 if first_step else None)

    def write(self, step: int, kind: str, values: dict[str, float]) -> None:
        """Write the values measured after ``step`` steps; an infinite or undefined value is written as null.

        Raises:
            UserError: the file cannot be written.
        """
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, "kind": kind, **finite}) + "\n")
            for name, value in values.items():
                self._writer.add_scalar(f"{kind}/{name}", value, step)
            self._writer.flush()
        except OSError as error:
            raise UserError(f"cannot write {self._path}: {error.strerror or error}.") from error

    def images(self, step: int, folder: Path, tag: str, images: Mapping[str, Tensor]) -> None:
        """Write images, uint8 (3, H, W) by name, as ``folder/NAME.png`` and to TensorBoard.

        Raises:
            UserError: a file cannot be written.
        """
        for name, image in images.items():
            write_png(folder / f"{name}.png", to_pixels(image))
            self._writer.add_image(f"{tag}{name}", image, step)

    def close(self) -> None:
        """Finish the TensorBoard file."""
        self._writer.close()


def _step_of(line: str) -> int:
    """Step of a line; a line cut off by a crash counts as later than everything."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return 2**62
