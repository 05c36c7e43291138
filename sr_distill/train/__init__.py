"""Training: the task, the loop, and what they leave on disk."""

from .build import build_task, tap_teacher
from .loop import Interrupted, Progress, Trainer
from .run_folder import RunFolder, open_run
from .task import DistillationTask, MutualTask

__all__ = [
    "DistillationTask",
    "Interrupted",
    "MutualTask",
    "Progress",
    "RunFolder",
    "Trainer",
    "build_task",
    "open_run",
    "tap_teacher",
]
