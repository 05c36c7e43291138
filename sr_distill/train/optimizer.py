"""The optimizers by name; those that precondition whole matrices see a kernel as one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..options.optimisation import OptimizerOptions

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


@dataclass(frozen=True)
class Part:
    """Weights of one shape that take a step together.

    Attributes:
        parameters: the weights.
        is_matrix: whether each is one, (out, in h w).
        step: which step of theirs it is, from 1 on.
        group: their settings.
    """

    parameters: list[nn.Parameter]
    is_matrix: bool
    step: int
    group: dict[str, Any]


class MatrixOptimizer(torch.optim.Optimizer):
    """Takes a kernel (out, in, h, w) as a matrix (out, in h w); what is no matrix, or has a side of 1, is left to Adam.

    Everything is computed and remembered in the dtype of the weights. Weight decay is decoupled, as AdamW's.

    A step has two halves, of which the second one can be recorded once and replayed: :meth:`plan` counts, :meth:`take` computes.

    Args:
        parameters: the weights.
        settings: of the group: ``lr``, ``betas``, ``weight_decay`` and those of the kind.
    """

    only_looks: ClassVar[int] = 0
    """How many of a matrix's first steps leave it as it is."""

    def __init__(self, parameters: Iterable[nn.Parameter], **settings: Any) -> None:
        super().__init__(parameters, settings)
        self._stacks: dict[nn.Parameter, _Stack] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._stacks = {}

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Take one step with the gradients that are there, or that ``closure`` makes; weights of one shape take it together.

        Args:
            closure: computes the loss and its gradients, which is returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        parts = self.plan()
        self.take(parts, [self.numbers(part) for part in parts])
        return loss

    def plan(self) -> list[Part]:
        """Count the step of each weight that has a gradient."""
        alike: dict[tuple[Any, ...], list[nn.Parameter]] = defaultdict(list)
        for index, group in enumerate(self.param_groups):
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                state["step"] = state.get("step", 0) + 1
                shape = parameter.shape
                sides = (shape[0], parameter.numel() // shape[0]) if len(shape) >= 2 else (1, 1)
                is_matrix = min(sides) > 1
                shape = sides if is_matrix else shape
                alike[is_matrix, state["step"], index, shape, parameter.dtype, parameter.device].append(parameter)
        return [Part(ones, *key[:2], self.param_groups[key[2]]) for key, ones in alike.items()]

    def numbers(self, part: Part) -> tuple[float, float, float]:
        """What else differs from step to step: the learning rate, and ``1 - b^n`` for Adam's moments, n of which are behind them."""
        count = part.step - self.only_looks if part.is_matrix else part.step
        return (part.group["lr"], *(1 - beta**count for beta in part.group["betas"]))

    def kind(self, step: int, group: dict[str, Any]) -> Hashable:
        """What the ``step``-th step of a weight is; those of one kind differ in :meth:`numbers` alone."""
        return None

    @property
    def coming(self) -> Hashable:
        """The kinds of the next step, of all weights that had one."""
        weights = ((weight, group) for group in self.param_groups for weight in group["params"] if weight in self.state)
        return frozenset(self.kind(self.state[weight]["step"] + 1, group) for weight, group in weights)

    @torch.no_grad()
    def take(self, parts: Sequence[Part], numbers: Iterable[Iterable[float | Tensor]]) -> None:
        """Change the weights.

        Args:
            parts: from :meth:`plan`.
            numbers: of each part, as they are or a row of a tensor on the device.
        """
        for part, (rate, *corrections) in zip(parts, numbers, strict=True):
            stack = self._stack_of(part.parameters)
            gradients = [parameter.grad for parameter in part.parameters]
            if part.is_matrix:
                together = torch.stack([gradient.flatten(1) for gradient in gradients])
                update = self.matrix_update(together, stack, part, corrections)
            else:
                update = _adam(torch.stack(gradients), stack, part.group["betas"], corrections)
            for parameter, tensors in zip(part.parameters, stack.shares):
                self.state[parameter].update(tensors)
            if update is not None:
                self._apply(part, update, rate)

    def matrix_update(
        self, gradient: Tensor, state: _Stack, part: Part, corrections: Sequence[float | Tensor]
    ) -> Tensor | None:
        """The step's direction for N matrices of one shape (N, rows, columns), times the learning rate; None: no step."""
        raise NotImplementedError

    def _stack_of(self, parameters: list[nn.Parameter]) -> _Stack:
        """What is remembered of these weights; made anew where a state was loaded since, or other weights took part."""
        first, states = parameters[0], [self.state[parameter] for parameter in parameters]
        if first not in self._stacks or not self._stacks[first].is_of(states):
            self._stacks[first] = _Stack(states)
        return self._stacks[first]

    @staticmethod
    def _apply(part: Part, update: Tensor, rate: float | Tensor) -> None:
        if part.group["weight_decay"]:
            torch._foreach_mul_(part.parameters, 1 - rate * part.group["weight_decay"])
        updates = [one.view(parameter.shape) for one, parameter in zip(update * rate, part.parameters)]
        torch._foreach_sub_(part.parameters, updates)


class _Stack(dict[str, Tensor]):
    """The tensors of the states of N weights by name, (N, ...) each; the state of a weight has its share of them, as a view."""

    def __init__(self, states: list[dict[str, Any]]) -> None:
        names = [name for name, value in states[0].items() if isinstance(value, Tensor)]
        super().__init__({name: torch.stack([state[name] for state in states]) for name in names})
        self._count = len(states)
        self._handed: list[dict[str, Tensor]] = [{} for _ in states]

    @property
    def shares(self) -> list[dict[str, Tensor]]:
        """Of each weight."""
        if any(self._handed[0].keys() != self.keys() or self._handed[0][name]._base is not self[name] for name in self):
            self._handed = [{name: value[index] for name, value in self.items()} for index in range(self._count)]
        return self._handed

    def is_of(self, states: list[dict[str, Any]]) -> bool:
        """Whether these states have the shares that were handed out last."""
        if len(states) != self._count:
            return False
        pairs = zip(states, self._handed)
        return all(state.get(name) is value for state, share in pairs for name, value in share.items())


class SOAP(MatrixOptimizer):
    """Adam in the eigenbases of Shampoo's preconditioners, which are kept up to date by a step of power iteration now and then.

    ``L = b L + (1 - b) G G^T`` and ``R = b R + (1 - b) G^T G`` with b = betas[1]; ``Q_L, Q_R`` their eigenvectors; Adam's moments and division
    are those of ``Q_L^T G Q_R``. The first step only looks: a gradient is not projected on a basis made of it.

    Args:
        parameters: the weights.
        lr: learning rate.
        betas: decay of the moments, and of the preconditioners.
        weight_decay: weight decay.
        precondition_every: steps between two updates of the eigenvectors.

    Source: Vyas et al., "SOAP: Improving and Stabilizing Shampoo using Adam", ICLR 2025, algorithm 3, and its repository.
    """

    only_looks = 1

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float = 3e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
        precondition_every: int = 10,
    ) -> None:
        super().__init__(
            parameters, lr=lr, betas=betas, weight_decay=weight_decay, precondition_every=precondition_every
        )

    def kind(self, step: int, group: dict[str, Any]) -> Hashable:
        """The first one, one that turns the bases, or another."""
        return "first" if step == 1 else "turning" if (step - 1) % group["precondition_every"] == 0 else "usual"

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with a state, also of checkpoints from before the moment was kept in the eigenbases."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            if "left_basis" in state and "moment" in state:
                state["rotated"] = state["left_basis"].mT @ state.pop("moment") @ state["right_basis"]

    def matrix_update(
        self, gradient: Tensor, state: _Stack, part: Part, corrections: Sequence[float | Tensor]
    ) -> Tensor | None:
        """See the class."""
        beta1, beta2 = part.group["betas"]
        kind = self.kind(part.step, part.group)
        if kind == "first":
            for side, product in (("left", gradient @ gradient.mT), ("right", gradient.mT @ gradient)):
                state[side], state[f"{side}_basis"] = (1 - beta2) * product, _eigenvectors(product)
            state["rotated"], state["square"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
            return None
        left, right = state["left_basis"], state["right_basis"]
        rotated = left.mT @ gradient @ right
        state["rotated"].lerp_(rotated, 1 - beta1)
        state["square"].lerp_(rotated.square(), 1 - beta2)
        direction = state["rotated"] / corrections[0] / ((state["square"] / corrections[1]).sqrt() + _EPS)
        update = left @ direction @ right.mT
        state["left"].lerp_(gradient @ gradient.mT, 1 - beta2)
        state["right"].lerp_(gradient.mT @ gradient, 1 - beta2)
        if kind == "turning":
            self._turn(state)
        return update

    @staticmethod
    def _turn(state: _Stack) -> None:
        """Bring the bases up to date, and the moments along; in place: a recorded step finds them where they were."""
        for dim, side in enumerate(("left", "right"), start=1):
            basis = state[f"{side}_basis"]
            turned, order = _turned(basis, state[side])
            change = turned.mT @ basis
            moment = change @ state["rotated"] if side == "left" else state["rotated"] @ change.mT
            square = state["square"].gather(dim, order.unsqueeze(3 - dim).expand_as(state["square"]))
            for tensor, changed in ((basis, turned), (state["rotated"], moment), (state["square"], square)):
                tensor.copy_(changed)


class Muon(MatrixOptimizer):
    """The momentum with all its singular values made (nearly) one, by five steps of a Newton-Schulz iteration.

    ``U = NS5((1 - m) G + m M)`` with momentum ``M = m M + (1 - m) G`` (Nesterov's), times ``0.2 sqrt(max(rows, columns))``, so that
    the size of a step is Adam's and learning rates carry over (Liu et al., "Muon is Scalable for LLM Training", 2025, equation 4).

    Args:
        parameters: the weights.
        lr: learning rate.
        betas: decay of the moments of vectors, which Adam takes.
        weight_decay: weight decay.
        momentum: m.

    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float = 3e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        momentum: float = 0.95,
    ) -> None:
        super().__init__(parameters, lr=lr, betas=betas, weight_decay=weight_decay, momentum=momentum)

    def matrix_update(
        self, gradient: Tensor, state: _Stack, part: Part, corrections: Sequence[float | Tensor]
    ) -> Tensor:
        """See the class."""
        group = part.group
        momentum = state.setdefault("moment", torch.zeros_like(gradient))
        momentum.lerp_(gradient, 1 - group["momentum"])
        direction = _orthogonal(gradient.lerp(momentum, group["momentum"]))
        return direction * (0.2 * max(direction.shape[1:]) ** 0.5)


def _adam(gradient: Tensor, state: _Stack, betas: tuple[float, float], corrections: Sequence[float | Tensor]) -> Tensor:
    """Adam's direction (Kingma & Ba 2015, algorithm 1)."""
    moment = state.setdefault("moment", torch.zeros_like(gradient)).lerp_(gradient, 1 - betas[0])
    square = state.setdefault("square", torch.zeros_like(gradient)).lerp_(gradient.square(), 1 - betas[1])
    return moment / corrections[0] / ((square / corrections[1]).sqrt() + _EPS)


def _eigenvectors(matrices: Tensor) -> Tensor:
    """Of symmetric matrices, in columns, by falling eigenvalue; any basis for one that is not finite, which the losses will tell."""
    exact = matrices.cpu().double()  # once for a weight; not every device has this, or in float64
    finite = exact.isfinite().flatten(1).all(1)[:, None, None]
    exact = torch.where(finite, exact, torch.eye(exact.shape[-1], dtype=exact.dtype))
    return torch.linalg.eigh(exact)[1].flip(2).to(matrices).contiguous()


def _turned(basis: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """A step of power iteration from old eigenvectors to those of changed matrices, and the order in which the old ones are now."""
    product = matrix @ basis
    order = (basis * product).sum(1).argsort(descending=True)  # by Rayleigh's quotients
    turned = torch.linalg.qr(product.gather(2, order[:, None].expand_as(product)))[0]
    return turned.contiguous(), order  # in the layout in which it is loaded: products of another one round differently


def _orthogonal(matrix: Tensor) -> Tensor:
    """The nearest matrices of the form U V^T, roughly."""
    a, b, c = _NEWTON_SCHULZ
    is_tall = matrix.shape[1] > matrix.shape[2]
    x = matrix.mT if is_tall else matrix
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if is_tall else x
