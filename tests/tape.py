"""A recorder of operations on the CPU that replays as a CUDA graph does, in the same memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

LOOKS_AT_VALUES = {"_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select"}
"""Operations for which the program would wait for the device."""


class Tape(TorchDispatchMode):
    """Remembers operations while it lasts, and what memory from outside held before they changed it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple] = []
        self._own: set[int] = set()
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        assert func.overloadpacket.__name__ not in LOOKS_AT_VALUES, f"{func} in a step that is recorded"
        for given, argument in zip(args, func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self._keep(given)
        out = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, out))
        self._own |= {leaf.untyped_storage().data_ptr() for leaf in _tensors(out)} - self._memory_of((args, kwargs))
        return out

    def _keep(self, changed) -> None:
        for tensor in _tensors(changed):
            place = tensor.untyped_storage().data_ptr()
            if place not in self._own and place not in self._before:
                whole = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
                self._before[place] = whole, whole.clone()

    @staticmethod
    def _memory_of(tree) -> set[int]:
        return {leaf.untyped_storage().data_ptr() for leaf in _tensors(tree)}

    def undo(self) -> None:
        """Memory from outside is as it was."""
        for whole, before in self._before.values():
            whole.copy_(before)

    def replay(self) -> None:
        """Do all of it again: results go where they were before."""
        with torch.no_grad():
            for func, args, kwargs, out in self.calls:
                for new, old in zip(_tensors(func(*args, **kwargs)), _tensors(out)):
                    if new.data_ptr() != old.data_ptr():
                        old.copy_(new)


def recording(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """In the place of :func:`sr_distill.train.recorded.recording`."""
    tape = Tape()
    with tape:
        values = step()
    tape.undo()

    def replay() -> Tensor:
        tape.replay()
        return values.clone()

    return replay


def _tensors(tree) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
