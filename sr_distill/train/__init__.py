"""Training: the task, the loop, and what they leave on disk."""

from .loop import Interrupted, Progress, Trainer
from .run_folder import RunFolder, open_run
from .task import DistillationTask

__all__ = ["DistillationTask", "Interrupted", "Progress", "RunFolder", "Trainer", "open_run"]
