"""Ctrl-C as a request."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator


class StopRequest:
    """Turns the first Ctrl-C (or SIGTERM) into a request to save and stop; a second one ends the program at once.

    Attributes:
        asked: whether somebody asked.
    """

    def __init__(self) -> None:
        self.asked = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Listen while this lasts; outside of the main thread, where signals cannot be handled, do nothing."""

        def ask(number: int, frame: object) -> None:
            self.asked = True
            signal.signal(signal.SIGINT, signal.default_int_handler)

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
