"""Progress bars that suit a terminal and a log file alike, and tables for people."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from tqdm import tqdm


def progress_bar(*args: Any, **kwargs: Any) -> tqdm:
    """``tqdm(...)`` on standard error: a moving bar on a terminal, a line now and then in a log file."""
    return tqdm(*args, dynamic_ncols=True, mininterval=0.2 if sys.stderr.isatty() else 30, **kwargs)


def format_columns(
    header: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[int] = (0,), rule: bool = True
) -> str:
    """A table in columns as wide as their longest cell.

    Args:
        rows: a cell for each of the header's; an empty row becomes an empty line.
        left: columns that are aligned to the left; the others are to the right.
        rule: whether a line stands under the header.
    """
    widths = [max(len(row[i]) for row in [header, *rows] if row) for i in range(len(header))]
    lines = [header, *([["-" * width for width in widths]] if rule else []), *rows]
    return "\n".join(
        "  ".join(c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths))).rstrip()
        for line in lines
    )


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Without what libraries print while this lasts, also those that are not Python and write to the terminal themselves."""
    with open(os.devnull, "w") as sink, contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        kept = [os.dup(number) for number in (1, 2)]
        try:
            for number in (1, 2):
                os.dup2(sink.fileno(), number)
            yield
        finally:
            for handle, number in zip(kept, (1, 2)):
                os.dup2(handle, number)
                os.close(handle)
