"""Choosing a device by name, and sharing work among processes."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed

from .errors import UserError

T = TypeVar("T")

_OUT_OF_MEMORY = ("out of memory", "allocate memory", "alloc_failed")

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # of malloc.h


def pick_device(name: str) -> torch.device:
    """The device for ``auto`` (CUDA, then Apple's MPS, then the CPU), ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises:
        UserError: there is no such device on this machine; says which there are.
    """
    available = ["cpu"]
    if torch.backends.mps.is_available():
        available.insert(0, "mps")
    if torch.cuda.is_available():
        available = ["cuda", *(f"cuda:{n}" for n in range(torch.cuda.device_count())), *available]
    if name == "auto":
        name = available[0]
    if name not in available:
        raise UserError(f"device '{name}' is not available here; available: auto, {', '.join(available)}.")
    if name == "cuda" and "LOCAL_RANK" in os.environ:  # one of several processes: each has its own
        name = f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
    return torch.device(name)


def keep_freed_memory() -> None:
    """Let the C library keep the memory of freed tensors for the next ones, where it is glibc; for a process that trains on the CPU.

    By default it hands large blocks back to the system, which has to clear every page of them again in the next step.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_TOP_PAD, 2**28)


def is_slow_in_bf16(device: torch.device) -> bool:
    """Whether a device only imitates bfloat16, many times slower than it computes in float32, as CPUs without AVX-512 do."""
    return (
        device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device has no memory left; on the CPU and on MPS, PyTorch's is a plain RuntimeError."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in said for words in _OUT_OF_MEMORY)


def process_share() -> tuple[int, int]:
    """This process's rank and the number of processes that a launcher (torchrun, accelerate) started; (0, 1) without one."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        return 0, 1
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")  # only results travel, which are small and on the CPU
    return torch.distributed.get_rank(), world_size


def leave_processes() -> None:
    """End what joins the processes: left to the end of the interpreter, its threads can abort a program that is done."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def gathered(items: list[T]) -> list[T]:
    """The items of all processes, in the order of their ranks; every process gets all."""
    _, world_size = process_share()
    if world_size == 1:
        return items
    shares: list[list[T]] = [[] for _ in range(world_size)]
    torch.distributed.all_gather_object(shares, items)
    return [item for share in shares for item in share]


def together(work: Callable[[], T]) -> list[T]:
    """What ``work`` gives in each process, in the order of their ranks; every process gets all, after all have ended.

    Raises:
        UserError: it failed in another process. In the process itself its own exception goes on: none waits for one that failed.
    """
    result: T | None = None
    failure: Exception | None = None
    try:
        result = work()
    except Exception as error:
        failure = error
    outcomes = gathered([(result, None if failure is None else str(failure) or type(failure).__name__)])
    if failure is not None:
        raise failure
    for _, reason in outcomes:
        if reason is not None:
            raise UserError(reason)
    return [result for result, _ in outcomes]
