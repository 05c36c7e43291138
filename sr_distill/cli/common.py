"""What every command does: turn errors into sentences and exit codes."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence

from ..errors import UserError


def run_command(main: Callable[[Sequence[str] | None], int], arguments: Sequence[str] | None = None) -> int:
    """Run a command. 0: done; 1: done with problems; 2: could not be done; 130: interrupted.

    What the user can put right is printed as a sentence. With SR_DISTILL_DEBUG set, errors keep their traceback.
    """
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message="torch.meshgrid")  # some published networks
    logging.getLogger("torch.distributed.elastic.multiprocessing.redirects").setLevel(logging.ERROR)
    try:
        return main(arguments)
    except UserError as error:
        if os.environ.get("SR_DISTILL_DEBUG"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, MemoryError, RuntimeError) as error:
        if os.environ.get("SR_DISTILL_DEBUG"):
            raise
        text = " ".join(str(error).split()) or type(error).__name__
        print(f"error: {text[:500]} (set SR_DISTILL_DEBUG=1 to see where)", file=sys.stderr)
        return 2


def add_device(parser: argparse.ArgumentParser) -> None:
    """The --device option."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
