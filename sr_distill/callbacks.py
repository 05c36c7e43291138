"""Distillation as a callback of other people's trainers: three lines for a loop that stays as it is.

A callback watches the student while the trainer's own step runs it, runs the teachers on the same inputs and adds the terms of a
:class:`~sr_distill.ModuleDistiller` to the loss. Lightning and fastai are imported where a callback is made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .errors import UserError
from .module_distiller import ModuleDistiller

LabelsOf = Callable[[Any], Tensor]


def lightning_callback(distiller: ModuleDistiller, labels: LabelsOf | None = None, name: str = "distillation") -> Any:
    """A callback of Lightning that adds the distiller's terms to what ``training_step`` returns (a loss, or a mapping with ``loss``).

    The student must be a part of the LightningModule. Adapters become the module's ``<name>_adapters`` before its optimizers are made, so
    that ``configure_optimizers`` with ``self.parameters()`` trains them, too; in checkpoints they are the callback's, so that
    ``load_from_checkpoint`` needs no distiller. The terms are logged as ``<name>/TERM``.

    Args:
        labels: gives the labels of a batch, for terms that look at them, as in ``lambda batch: batch[1]``.
        name: another one for each callback of a trainer with several.

    Raises:
        UserError: Lightning is not installed.
    """
    try:
        from lightning.pytorch import Callback
    except ImportError:
        try:
            from pytorch_lightning import Callback
        except ImportError:
            raise UserError("Lightning is not installed: pip install lightning.") from None

    adapters = f"{name}_adapters"

    class DistillationCallback(Callback):
        @property
        def state_key(self) -> str:
            return name

        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
            if stage != "fit":
                return
            if not any(module is distiller.student for module in pl_module.modules()):
                raise UserError("the distiller's student is no part of this LightningModule.")
            setattr(pl_module, adapters, distiller.adapters)
            self._hooks = _hidden(pl_module, f"{adapters}.")
            self._own_step = pl_module.training_step
            pl_module.training_step = self._with_terms(trainer, pl_module)

        def _with_terms(self, trainer: Any, pl_module: Any) -> Callable[..., Any]:
            def training_step(batch: Any, *args: Any, **kwargs: Any) -> Any:
                with distiller.watching():
                    result = self._own_step(batch, *args, **kwargs)
                distiller.to(pl_module.device)  # teachers are no part of the module, which Lightning moved
                weights = distiller.weights_at(trainer.global_step, trainer.estimated_stepping_batches)
                total, terms = distiller.total(None if labels is None else labels(batch), weights)
                pl_module.log_dict({f"{name}/{term}": value for term, value in terms.items()})
                if isinstance(result, dict):
                    return {**result, "loss": result["loss"] + total}
                return result + total

            return training_step

        def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
            if stage == "fit":
                pl_module.training_step = self._own_step
                delattr(pl_module, adapters)
                for hook in self._hooks:
                    hook.remove()

        def state_dict(self) -> dict[str, Any]:
            return {"adapters": distiller.adapters.state_dict()}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            distiller.adapters.load_state_dict(state["adapters"])

    return DistillationCallback()


def _hidden(module: nn.Module, prefix: str) -> list[RemovableHandle]:
    """Leave a part of a module out of its state dict, and do without it there."""

    def leave_out(module: nn.Module, state: dict[str, Tensor], outer: str, metadata: Any) -> None:
        for name in [name for name in state if name.startswith(outer + prefix)]:
            del state[name]

    def do_without(module: nn.Module, incompatible: Any) -> None:
        missing = incompatible.missing_keys
        missing[:] = [name for name in missing if f".{prefix}" not in f".{name}"]  # the module may be in another

    return [module._register_state_dict_hook(leave_out), module.register_load_state_dict_post_hook(do_without)]


def fastai_callback(distiller: ModuleDistiller) -> Any:
    """A callback of fastai that adds the distiller's terms to the loss of training batches; the learner's model is the student.

    Adapters must be in the learner's parameters: give it ``splitter=lambda model: [[*model.parameters(), *distiller.adapters.parameters()]]``.

    Raises:
        UserError: fastai is not installed; when training begins: the student is no part of the model, or adapters would not be trained.
    """
    try:
        from fastai.callback.core import Callback
    except ImportError:
        raise UserError("fastai is not installed: pip install fastai.") from None

    class DistillationCallback(Callback):
        def before_fit(self) -> None:
            if not any(module is distiller.student for module in self.learn.model.modules()):
                raise UserError("the distiller's student is no part of the learner's model.")
            trained = {id(parameter) for parameter, *_ in self.learn.opt.all_params()}
            if not all(id(parameter) in trained for parameter in distiller.adapters.parameters()):
                raise UserError(
                    "the distiller's adapters are not in the learner's parameters: give the learner a splitter with them."
                )

        def before_batch(self) -> None:
            self._watching = distiller.watching() if self.training else None
            if self._watching is not None:
                self._watching.__enter__()

        def after_pred(self) -> None:
            if self._watching is not None:
                self._watching.__exit__(None, None, None)

        def after_loss(self) -> None:
            if self._watching is None:
                return
            weights = distiller.weights_at(self.train_iter, self.n_epoch * len(self.dls.train))
            # Teachers and adapters are no part of the model, which fastai moved.
            distiller.to(next(distiller.student.parameters()).device)
            total, _ = distiller.total(self.yb[0] if self.yb else None, weights)
            self.learn.loss_grad = self.learn.loss_grad + total
            self.learn.loss = self.learn.loss_grad.clone()

    return DistillationCallback()


class LoopCallback:
    """For a loop of one's own: ``with callback: loss = criterion(student(x), y)``, then ``loss = loss + callback.terms(labels=y)``.

    Args:
        distiller: the objective.
        total_steps: of the run, for terms with a schedule; steps are counted by :meth:`terms`, and further ones have the last one's weights.

    Raises:
        UserError: a term has a schedule, and it is not said how long the run is.
    """

    def __init__(self, distiller: ModuleDistiller, total_steps: int | None = None) -> None:
        if total_steps is None and distiller.has_schedules:
            raise UserError(
                "a line has a schedule: say how many steps the run has, LoopCallback(distiller, total_steps=...)."
            )
        self.distiller, self.total_steps, self.step = distiller, total_steps, 0
        self.values: dict[str, Tensor] = {}

    def __enter__(self) -> LoopCallback:
        self._watching = self.distiller.watching()
        self._watching.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._watching.__exit__(*error)

    def terms(self, labels: Tensor | None = None) -> Tensor:
        """The weighted sum of the terms, to be added to the loss; unweighted values are in ``values``."""
        total_steps = self.total_steps or 1
        weights = self.distiller.weights_at(min(self.step, total_steps - 1), total_steps)
        total, self.values = self.distiller.total(labels, weights)
        self.step += 1
        return total
