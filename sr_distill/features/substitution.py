"""Running the rest of a network from a map that takes the place of its own."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Sequence

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from ..contracts import Prediction
from ..errors import UserError
from ..models import SRModel
from ..models.quantised import Range
from .taps import Taps, as_map, watching

Event = tuple[str, object]
"""A layer that has run, and a copy of what it put out."""


class ReplayTaps(Taps):
    """Taps that remember what ran before each of them, so that the network can be run again from there on.

    Args:
        model: the network.
        paths: module paths.

    Raises:
        UserError: a path does not exist; names the nearest that do.
    """

    def __init__(self, model: SRModel, paths: Sequence[str]) -> None:
        super().__init__(model, paths)
        self._siblings = _siblings(model.net, self.paths)

    def run(self, lr: Tensor, need_sr: bool = True, paths: Collection[str] | None = None) -> Prediction:
        """As :meth:`Taps.run`, always to the end and of all layers, and with ``forward_from``."""
        events: list[Event] = []
        before: dict[str, list[Event]] = {}
        own: dict[str, tuple[object, tuple[int, int]]] = {}

        def remember(path: str, output: object, size: tuple[int, int]) -> None:
            if len(before) == len(self.paths):  # nothing behind the last tap is handed on: no need to copy it
                return
            copied = _copied(output)
            if path in self._modules:
                before[path], own[path] = list(events), (copied, size)
            events.append((path, copied))

        with watching(self.model, self._siblings, remember):
            prediction = super().run(lr)
        order = tuple(prediction.features)
        forward_from = Replay(self.model, self._siblings, lr, prediction.sr, order, before, own)
        return dataclasses.replace(prediction, forward_from=forward_from)


class Replay:
    """Continues one pass of a network from a map that takes the place of its own (:class:`~sr_distill.contracts.ForwardFrom`).

    Layers that ran before the place are not run again: their outputs of that pass are handed on, so that what goes around the
    place by a skip connection is the network's own. Statistics of batch normalisation stay as they are.
    """

    def __init__(
        self,
        model: SRModel,
        modules: dict[str, nn.Module],
        lr: Tensor,
        sr: Tensor,
        order: tuple[str, ...],
        before: dict[str, list[Event]],
        own: dict[str, tuple[object, tuple[int, int]]],
    ) -> None:
        self.sr = sr
        self._model, self._modules, self._lr = model, modules, lr
        self._order, self._before, self._own = order, before, own

    def __call__(self, path: str, feature: Tensor, until: str | None = None) -> Prediction:
        """Output and later maps when ``feature`` takes the place of the map at ``path``.

        Args:
            path: one of the tapped layers.
            feature: (B, C, h, w), the shape of the map that :class:`Taps` reads there.
            until: a later tapped layer to stop at; None: run to the output.

        Raises:
            UserError: the shape is another, or ``until`` does not come after ``path``.
        """
        later = self._order[self._order.index(path) + 1 :]
        if until is not None:
            if until not in later:
                raise UserError(f"{self._model.spec.name}: the layer {until} does not run after {path}.")
            later = later[: later.index(until) + 1]
        with self._replayed(path, feature), _statistics_kept(self._model.net):
            return Taps(self._model, later).run(self._lr, need_sr=until is None)

    @contextlib.contextmanager
    def _replayed(self, path: str, feature: Tensor) -> Iterator[None]:
        """While this lasts, layers up to ``path`` give what they gave, and ``path`` gives the feature."""
        outputs: dict[str, deque[object]] = defaultdict(deque)
        for name, output in self._before[path]:
            outputs[name].append(output)
        outputs[path].append(self._in_place(path, feature))
        before = {name: self._modules[name].__dict__.get("forward") for name in outputs}
        try:
            for name, queue in outputs.items():
                self._modules[name].forward = _replay(self._modules[name].forward, queue)
            yield
        finally:
            for name, forward in before.items():
                if forward is None:
                    self._modules[name].__dict__.pop("forward", None)
                else:
                    self._modules[name].forward = forward

    def _in_place(self, path: str, feature: Tensor) -> Tensor:
        """The feature in the form of the layer's own output: its dtype, its padding, its tokens."""
        output, size = self._own[path]
        where = f"{self._model.spec.name}: {path}"
        whole = as_map(output, size, where)
        fits = feature.shape[:2] == whole.shape[:2] and all(a <= b for a, b in zip(feature.shape[2:], whole.shape[2:]))
        if not fits:
            raise UserError(
                f"{where} gives a map of shape {tuple(whole.shape)}; {tuple(feature.shape)} cannot take its place."
            )
        height, width = feature.shape[-2:]
        feature = feature.to(whole.dtype)
        if feature.shape != whole.shape:  # around it lies what the network padded
            whole = whole.clone()
            whole[..., :height, :width] = feature
            feature = whole
        return feature.flatten(2).transpose(1, 2) if output.ndim == 3 else feature


def _siblings(net: nn.Module, paths: Sequence[str]) -> dict[str, nn.Module]:
    """The children of every module on the way to each path: among them is everything that may run before it."""
    found: dict[int, tuple[str, nn.Module]] = {}
    for path in paths:
        parent, prefix = net, ""
        for part in path.split("."):
            for name, child in parent.named_children():
                found.setdefault(id(child), (prefix + name, child))
            parent, prefix = getattr(parent, part), f"{prefix}{part}."
        found[id(parent)] = (path, parent)
    return dict(found.values())


def _replay(run: Callable[..., object], outputs: deque[object]) -> Callable[..., object]:
    """A forward that hands out what is there, and runs when nothing is left."""

    def forward(*args: object, **kwargs: object) -> object:
        return _copied(outputs.popleft()) if outputs else run(*args, **kwargs)

    return forward


def _copied(output: object) -> object:
    """Copies of all tensors in it, so that a later in-place layer does not change them."""
    if isinstance(output, Tensor):
        return output.clone()
    if isinstance(output, (tuple, list)):
        return type(output)(_copied(item) for item in output)
    return output


@contextlib.contextmanager
def _statistics_kept(net: nn.Module) -> Iterator[None]:
    """While this lasts, layers in training mode normalise by their batch, or round, but do not remember its statistics."""
    kinds = (_NormBase, Range)
    tracking = [m for m in net.modules() if isinstance(m, kinds) and m.training and m.track_running_stats]
    for module in tracking:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in tracking:
            module.track_running_stats = True
