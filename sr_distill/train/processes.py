"""Devices and processes of a run, as its options say and nobody else."""

from __future__ import annotations

import os
from datetime import timedelta

from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

from ..devices import pick_device
from ..errors import UserError
from ..options import RunOptions


def make_accelerator(options: RunOptions, has_idle_weights: bool) -> Accelerator:
    """One accelerator for the run.

    ``accelerate launch`` sets variables (ACCELERATE_MIXED_PRECISION, ACCELERATE_GRADIENT_ACCUMULATION_STEPS, ...) that change what
    a step computes. They are dropped, so that a run has the same result however it is started. A device named in the options is
    taken; processes started by a launcher choose their own.

    Args:
        has_idle_weights: whether there are steps in which some of the weights take no part.

    Raises:
        UserError: the device is not there, or the batch cannot be shared by the processes.
    """
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        del os.environ[name]
    device = pick_device(options.device)
    if options.device != "auto" and device.type != "cpu":
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(device)
    # The processes wait for each other while the teacher's outputs are stored, which can take longer than the usual 10 minutes.
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=24))
    handlers = [patience, DistributedDataParallelKwargs(find_unused_parameters=has_idle_weights)]
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="no", kwargs_handlers=handlers)
    if options.data.batch_size % accelerator.num_processes:
        raise UserError(
            f"data.batch_size {options.data.batch_size} cannot be divided among {accelerator.num_processes} processes."
        )
    return accelerator
