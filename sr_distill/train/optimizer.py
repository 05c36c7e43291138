"""The optimizers by name."""

from __future__ import annotations

import torch
from torch import nn

from ..options.schema import OptimizerOptions


def make_optimizer(options: OptimizerOptions, module: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of all that is trainable in a module."""
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[options.type]
    return kind(
        [parameter for parameter in module.parameters() if parameter.requires_grad],
        lr=options.learning_rate,
        betas=tuple(options.betas),
        weight_decay=options.weight_decay,
    )
