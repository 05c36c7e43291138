"""Samples of all processes, for what compares samples or takes statistics of a batch."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed
from torch import Tensor


def all_samples(x: Tensor) -> Tensor:
    """The samples of all processes in the order of their ranks, with gradient; ``x`` itself where there is one process.

    A loss between samples of these is the same in every process, and the mean of its gradients over the processes, which is what
    they take, is the gradient that one process would have. Every process must have as many samples.
    """
    return _AllSamples.apply(x.contiguous()) if _are_several() else x


@torch.no_grad()
def mean_over_processes(x: Tensor) -> Tensor:
    """The mean of a tensor over all processes, without gradient."""
    if not _are_several():
        return x
    mean = x.clone()
    torch.distributed.all_reduce(mean)
    return mean / torch.distributed.get_world_size()


@torch.no_grad()
def extremes(x: Tensor) -> Tensor:
    """Least and largest value (2,) of the samples of all processes, without gradient."""
    least, largest = x.aminmax()
    found = torch.stack([-least, largest])
    if _are_several():
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
    return found * found.new_tensor([-1, 1])


def _are_several() -> bool:
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


class _AllSamples(torch.autograd.Function):
    """All processes' samples in one tensor; the gradient of a sample is the sum over the processes that looked at it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        shares = [torch.empty_like(x) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(shares, x)
        return torch.cat(shares)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        torch.distributed.all_reduce(gradient)
        share = len(gradient) // torch.distributed.get_world_size()
        return gradient[torch.distributed.get_rank() * share :][:share]
