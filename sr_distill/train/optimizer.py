"""The optimizers by name; those that precondition whole matrices see a kernel as one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..options.schema import OptimizerOptions

_EPS = 1e-8
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def make_optimizer(options: OptimizerOptions, module: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of all that is trainable in a module."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    common = {"lr": options.learning_rate, "betas": tuple(options.betas), "weight_decay": options.weight_decay}
    if options.type in ("adam", "adamw"):
        return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[options.type](parameters, **common)
    if options.type == "muon":
        return Muon(parameters, **common, momentum=options.momentum)
    return SOAP(parameters, **common, precondition_every=options.precondition_every)


class MatrixOptimizer(torch.optim.Optimizer):
    """Takes a kernel (out, in, h, w) as a matrix (out, in h w); what is no matrix, or has a side of 1, is left to Adam.

    Everything is computed and remembered in the dtype of the weights. Weight decay is decoupled, as AdamW's.

    Args:
        parameters: the weights.
        lr: learning rate.
        betas: decay of the two moments.
        weight_decay: weight decay.
        own: further settings of a group.
    """

    def __init__(
        self, parameters: list[nn.Parameter], lr: float, betas: tuple[float, float], weight_decay: float, **own: float
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "weight_decay": weight_decay, **own})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> None:
        """Take one step with the gradients that are there."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state, gradient = self.state[parameter], parameter.grad
                state["step"] = state.get("step", 0) + 1
                if parameter.ndim >= 2 and min(parameter.flatten(1).shape) > 1:
                    update = self.matrix_update(gradient.flatten(1), state, group)
                else:
                    update = _adam(gradient, state, group["betas"])
                if update is None:
                    continue
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update.view(parameter.shape), alpha=-group["lr"])

    def matrix_update(self, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor | None:
        """The step's direction for a matrix, times the learning rate; None: no step."""
        raise NotImplementedError


class SOAP(MatrixOptimizer):
    """Adam in the eigenbases of Shampoo's preconditioners, which are kept up to date by a step of power iteration now and then.

    ``L = b L + (1 - b) G G^T`` and ``R = b R + (1 - b) G^T G`` with b = betas[1]; ``Q_L, Q_R`` their eigenvectors; Adam's second moment and
    division take place on ``Q_L^T G Q_R``. The first step only looks: a gradient is not projected on a basis made of it.

    Args:
        precondition_every: steps between two updates of the eigenvectors.

    Source: Vyas et al., "SOAP: Improving and Stabilizing Shampoo using Adam", ICLR 2025, algorithm 3, and its repository.
    """

    def matrix_update(self, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor | None:
        """See the class."""
        beta1, beta2 = group["betas"]
        if state["step"] == 1:
            for side, product in (("left", gradient @ gradient.T), ("right", gradient.T @ gradient)):
                state[side], state[f"{side}_basis"] = (1 - beta2) * product, _eigenvectors(product)
            state["moment"], state["square"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
            return None
        count = state["step"] - 1
        left, right = state["left_basis"], state["right_basis"]
        state["moment"].lerp_(gradient, 1 - beta1)
        state["square"].lerp_((left.T @ gradient @ right).square(), 1 - beta2)
        moment = left.T @ state["moment"] @ right / (1 - beta1**count)
        direction = moment / ((state["square"] / (1 - beta2**count)).sqrt() + _EPS)
        update = left @ direction @ right.T
        state["left"].lerp_(gradient @ gradient.T, 1 - beta2)
        state["right"].lerp_(gradient.T @ gradient, 1 - beta2)
        if count % group["precondition_every"] == 0:
            for dim, side in enumerate(("left", "right")):
                state[f"{side}_basis"], order = _turned(state[f"{side}_basis"], state[side])
                state["square"] = state["square"].index_select(dim, order)
        return update


class Muon(MatrixOptimizer):
    """The momentum with all its singular values made (nearly) one, by five steps of a Newton-Schulz iteration.

    ``U = NS5((1 - m) G + m M)`` with momentum ``M = m M + (1 - m) G`` (Nesterov's), times ``0.2 sqrt(max(rows, columns))``, so that
    the size of a step is Adam's and learning rates carry over (Liu et al., "Muon is Scalable for LLM Training", 2025, equation 4).

    Args:
        momentum: m.

    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024.
    """

    def matrix_update(self, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """See the class."""
        momentum = state.setdefault("moment", torch.zeros_like(gradient))
        momentum.lerp_(gradient, 1 - group["momentum"])
        direction = _orthogonal(gradient.lerp(momentum, group["momentum"]))
        return direction * (0.2 * max(direction.shape) ** 0.5)


def _adam(gradient: Tensor, state: dict[str, Any], betas: tuple[float, float]) -> Tensor:
    """Adam's direction (Kingma & Ba 2015, algorithm 1)."""
    moment = state.setdefault("moment", torch.zeros_like(gradient)).lerp_(gradient, 1 - betas[0])
    square = state.setdefault("square", torch.zeros_like(gradient)).lerp_(gradient.square(), 1 - betas[1])
    corrected = (square / (1 - betas[1] ** state["step"])).sqrt() + _EPS
    return moment / (1 - betas[0] ** state["step"]) / corrected


def _eigenvectors(matrix: Tensor) -> Tensor:
    """Of a symmetric matrix, in columns, by falling eigenvalue; any basis for one that is not finite, which the losses will tell."""
    exact = matrix.cpu().double()  # once for a weight; not every device has this, or in float64
    if not exact.isfinite().all():
        return torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    return torch.linalg.eigh(exact)[1].flip(1).to(matrix)


def _turned(basis: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """A step of power iteration from old eigenvectors to those of a changed matrix, and the order in which the old ones are now."""
    order = (basis.T @ matrix @ basis).diagonal().argsort(descending=True)
    return torch.linalg.qr(matrix @ basis[:, order])[0], order


def _orthogonal(matrix: Tensor) -> Tensor:
    """The nearest matrix of the form U V^T, roughly."""
    a, b, c = _NEWTON_SCHULZ
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x
