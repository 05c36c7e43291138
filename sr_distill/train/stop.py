"""Ctrl-C as a request, and several processes that heed it together."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator

import torch
from accelerate import Accelerator

_PATIENCE = 2.0  # seconds between two agreements of several processes
_MOST_STEPS = 8  # and no more steps than that, because the next ones may be slower
_ONE_REQUEST = 5.0  # seconds in which a launcher may pass on the signal that the terminal sent already


class StopRequest:
    """Turns the first Ctrl-C (or SIGTERM) into a request to save and stop; a later Ctrl-C ends the program at once.

    Attributes:
        asked: whether somebody asked.
    """

    def __init__(self) -> None:
        self.asked = False
        self._when = 0.0

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Listen while this lasts; outside of the main thread, where signals cannot be handled, do nothing."""

        def ask(number: int, frame: object) -> None:
            again = self.asked and time.monotonic() - self._when > _ONE_REQUEST
            if again and number == signal.SIGINT:
                raise KeyboardInterrupt
            if not self.asked:
                self.asked, self._when = True, time.monotonic()
                if os.environ.get("RANK", "0") == "0":  # written past Python's buffers, which this may have interrupted
                    os.write(
                        2, b"\nstopping after this step, or this image of a validation; Ctrl-C again does not save.\n"
                    )

        try:
            before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:
            yield
            return
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class StopAgreement:
    """Whether to stop now, answered alike in all processes, so that none waits for another for ever.

    Several processes ask each other every few steps, not at every one: that would make fast steps slow. How many steps follows
    from the slowest process's time of a step.
    """

    def __init__(self, accelerator: Accelerator, request: StopRequest) -> None:
        self._accelerator, self._request = accelerator, request
        self._last = self._next = 0
        self._since = time.perf_counter()

    def reached(self, step: int, other_steps_follow: bool = False) -> bool:
        """Whether to stop after ``step`` steps; every process must ask after the same steps.

        Args:
            other_steps_follow: the next step computes something else, and may take another time.
        """
        if self._accelerator.num_processes == 1:
            return self._request.asked
        if step < self._next and not other_steps_follow:
            return False
        seconds = (time.perf_counter() - self._since) / max(1, step - self._last)
        asked, slowest = self.of_all(float(self._request.asked), seconds)
        apart = 1 if other_steps_follow else min(_MOST_STEPS, max(1, int(_PATIENCE / max(slowest, 1e-6))))
        self._last, self._next = step, step + apart
        self._since = time.perf_counter()
        return asked > 0

    def of_all(self, *values: float) -> list[float]:
        """The greatest of each value over all processes."""
        mine = torch.tensor([values], dtype=torch.float32, device=self._accelerator.device)
        return self._accelerator.gather(mine).amax(0).tolist()
