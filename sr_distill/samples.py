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
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return x
    if torch.distributed.get_world_size() == 1:
        return x
    return _AllSamples.apply(x.contiguous())


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
