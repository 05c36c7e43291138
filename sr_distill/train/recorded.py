"""Training steps that are recorded once, as CUDA graphs, and replayed: the GPU runs a whole step without waiting for the program."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor, nn

from ..data import ResidentCrops
from .average import Average
from .optimizer import MatrixOptimizer, Part

Gradients = Callable[[ResidentCrops, Sequence[float]], Tensor]
"""Leaves the gradients of a step with the weights, of crops and weights of the terms; returns what is logged of it."""


class RecordedSteps:
    """Takes steps out of recordings, one for each kind of step: crops, networks, terms, gradients, optimizer and averages.

    What differs between steps of one kind lies in two tensors on the device, which a recording reads: where crops lie, and numbers (learning
    rate, corrections of moments, shares of averages). All else is changed where it is.

    Args:
        gradients: the first part of a step; it must not look at values on the device.
        optimizer: the second.
        averages: the third, each with the student that it follows.
        device: where steps run.
        say: is told once where steps of a kind cannot be recorded; they are then taken one by one.
    """

    def __init__(
        self,
        gradients: Gradients,
        optimizer: MatrixOptimizer,
        averages: Sequence[tuple[Average, nn.Module]],
        device: torch.device,
        say: Callable[[str], None],
    ) -> None:
        self._gradients, self._optimizer, self._averages = gradients, optimizer, averages
        self._device, self._say = device, say
        self._seen: set[Hashable] = set()
        self._recordings: dict[Hashable, Callable[[], Tensor]] = {}
        self._places: Tensor | None = None
        self._numbers: Tensor | None = None

    def take(self, crops: ResidentCrops, weights: Sequence[float]) -> Tensor | None:
        """Take the next step, and return what is logged of it.

        None: it was not taken. It is the first of its kind, which fills caches and lets libraries choose, and is to be taken as it is.
        """
        kind = (tuple(weights), self._optimizer.coming)
        if kind not in self._seen:
            self._seen.add(kind)
            return None
        parts = self._optimizer.plan()
        numbers = [number for part in parts for number in self._optimizer.numbers(part)]
        numbers += [average.plan() for average, _ in self._averages]
        self._places = self._put(crops.places, self._places)
        self._numbers = self._put(torch.tensor(numbers), self._numbers)
        if kind not in self._recordings:
            self._recordings[kind] = self._record(ResidentCrops(self._places, crops.cut), weights, parts)
        return self._recordings[kind]()

    def _put(self, values: Tensor, kept: Tensor | None) -> Tensor:
        """Values on the device, always at the same place; from ordinary memory such a copy waits for nothing, and is done with its source."""
        if kept is None:
            return values.to(self._device, copy=True)
        return kept.copy_(values, non_blocking=True)

    def _record(self, crops: ResidentCrops, weights: Sequence[float], parts: Sequence[Part]) -> Callable[[], Tensor]:
        def step() -> Tensor:
            values = self._gradients(crops, weights)
            of_parts, shares = self._numbers.split([len(self._numbers) - len(self._averages), len(self._averages)])
            self._optimizer.take(parts, of_parts.view(len(parts), -1))
            for (average, student), share in zip(self._averages, shares):
                average.blend(student, share)
            return values

        try:
            return recording(step)
        except RuntimeError as error:
            self._say(
                f"some steps cannot be recorded, and are taken one by one ({' '.join(str(error).split())[:200]})."
            )
            return step


def recording(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Record what ``step`` does, without doing it; each call of what comes back does it and returns the values, anew."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        values = step()

    def replay() -> Tensor:
        graph.replay()
        return values.clone()

    return replay
