"""The values of the terms since they were last looked at, kept on the device so that no step waits for it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from ..errors import UserError


class RecentTerms:
    """Total and terms of the last steps.

    Args:
        labels: names of the terms, in their order.
        accelerator: devices and processes; values are means over these.
    """

    def __init__(self, labels: Sequence[str], accelerator: Accelerator) -> None:
        self._labels, self._accelerator = ["total", *labels], accelerator
        self._values: list[Tensor] = []
        self._active: list[list[bool]] = []
        self.restart_clock()

    def __len__(self) -> int:
        return len(self._values)

    @property
    def seconds(self) -> float:
        """Time since the values were last looked at."""
        return time.perf_counter() - self._since

    def restart_clock(self) -> None:
        """The time begins now."""
        self._since = time.perf_counter()

    def leave_out(self, seconds: float) -> None:
        """That much of the time was spent on something else."""
        self._since += seconds

    def row(self, total: Tensor, terms: Mapping[str, Tensor]) -> Tensor:
        """What a step gave, for :meth:`add`; 0 for a term that it did not compute."""
        nothing = total.new_zeros(())
        values = [total.detach(), *(terms.get(label, nothing) for label in self._labels[1:])]
        return torch.stack([value.float() for value in values])

    def add(self, row: Tensor, weights: Sequence[float]) -> None:
        """Take in what a step gave; a term whose weight was 0 gave nothing."""
        self._values.append(row)
        self._active.append([True, *(weight > 0 for weight in weights)])

    def means(self, step: int, last_good: Path | None) -> dict[str, float]:
        """The mean of the total, and of each term over the steps that computed it; everything is forgotten then.

        Args:
            step: how many steps are done.
            last_good: the last checkpoint, for the message.

        Raises:
            UserError: a value is not finite; says which and at which step.
        """
        values = self._accelerator.reduce(torch.stack(self._values), reduction="mean").cpu()
        active = torch.tensor(self._active)
        self._check(values, step - len(values) + 1, last_good)
        self._values, self._active = [], []
        self.restart_clock()
        sums, counts = (values * active).sum(0).tolist(), active.sum(0).tolist()
        return {label: total / count for label, total, count in zip(self._labels, sums, counts) if count}

    def _check(self, values: Tensor, first_step: int, last_good: Path | None) -> None:
        bad = ~values.isfinite()
        if not bad.any():
            return
        row = int(bad.any(1).nonzero()[0])
        # The terms stand behind the total; a term that is not finite is the cause, the total only the sum.
        column = int(bad[row].nonzero()[-1])
        raise UserError(
            f"the loss is not finite: term '{self._labels[column]}' is {values[row, column]:g} at step {first_step + row}. "
            f"Nothing was saved after that. Last good checkpoint: {last_good or 'none was saved yet'}. "
            "A lower optimizer.learning_rate, optimizer.clip_grad_norm or train.precision fp32 may help."
        )
