"""Progress bars that suit a terminal and a log file alike."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


def progress_bar(*args: Any, **kwargs: Any) -> tqdm:
    """``tqdm(...)`` on standard error: a moving bar on a terminal, a line now and then in a log file."""
    return tqdm(*args, dynamic_ncols=True, mininterval=0.2 if sys.stderr.isatty() else 30, **kwargs)
