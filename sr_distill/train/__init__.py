"""Training: the objective over networks, the loop, and what they leave on disk."""

from ..callable import make_callable
from .balance import find_weights
from .build import Run, build_run, build_task, tap_teachers
from .lock import locked
from .loop import Trainer
from .optimizer import SOAP, Muon, make_optimizer
from .processes import make_accelerator
from .progress import Interrupted, Progress, Validation
from .run_folder import RunFolder, clear_leftovers, open_run
from .task import DistillationTask

__all__ = [
    "SOAP",
    "DistillationTask",
    "Interrupted",
    "Muon",
    "Progress",
    "Run",
    "RunFolder",
    "Trainer",
    "Validation",
    "build_run",
    "build_task",
    "clear_leftovers",
    "find_weights",
    "locked",
    "make_accelerator",
    "make_optimizer",
    "open_run",
    "tap_teachers",
]

make_callable(__name__)
