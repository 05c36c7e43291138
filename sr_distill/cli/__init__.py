"""Commands: ``sr-distill train | evaluate | inference``, and the scripts of the same names."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from .. import __version__
from ..errors import did_you_mean

COMMANDS = {
    "init": "write a commented options file to begin with",
    "train": "train a student, with or without a teacher",
    "evaluate": "measure models on benchmark sets",
    "inference": "upscale images",
    "export": "to the files of other runtimes: ONNX, OpenVINO, ncnn, ExecuTorch, LiteRT, Core ML",
    "web_demo": "a page that upscales photos in the browser",
    "features": "list the layers whose feature maps can be compared",
    "profile_model": "parameters, MACs, memory and latency of networks",
    "select_student": "the best of several students within a budget",
    "prepare_datasets": "check benchmark sets, make their LR images, convert other layouts",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the console command ``sr-distill``."""
    from .common import run_command

    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] in COMMANDS:
        command = importlib.import_module(f".{given[0]}", __package__)
        return run_command(command.main, given[1:])
    if given == ["--version"]:
        print(f"sr-distill {__version__}")
        return 0
    if given and not given[0].startswith("-"):
        print(f"error: there is no command '{given[0]}'.{did_you_mean(given[0], COMMANDS)}\n", file=sys.stderr)
    print("usage: sr-distill COMMAND ...\n")
    for name, what in COMMANDS.items():
        print(f"  {name:16} {what}")
    print("\nsr-distill COMMAND --help says more.")
    return 0 if not given or given[0] in ("-h", "--help") else 2
