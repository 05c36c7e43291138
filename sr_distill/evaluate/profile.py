"""What a network costs: parameters, multiply-accumulates, activations, memory, and time measured here."""

from __future__ import annotations

import copy
import statistics
import time
import warnings
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ..errors import UserError
from ..models import SRModel, collapse

FRAME = (720, 1280)
"""Height and width of the output that costs are stated for, as in the papers."""


@dataclass(frozen=True)
class Profile:
    """The cost of one network.

    Attributes:
        parameters: number of weights.
        macs: multiply-accumulates of convolutions and matrix products for a 1280x720 output.
        activations: elements that convolutions and linear layers put out for that output (as in the NTIRE challenges).
        peak_memory: bytes of all tensors that are alive at once in that pass, in float32, without the weights.
        latency_ms, spread_ms: median time of a pass at that output, measured here, and half the distance of the quartiles.
        device: where it was measured.
        runtime: by what.
        file_bytes: size of its file; None if it has none.
    """

    parameters: int
    macs: int
    activations: int
    peak_memory: int
    latency_ms: float
    spread_ms: float
    device: str
    file_bytes: int | None = None
    runtime: str = "torch"

    HEADER: ClassVar[tuple[str, ...]] = (
        "parameters",
        "MACs at 1280x720",
        "activations",
        "peak memory",
        "latency here",
        "file",
    )

    def as_dict(self) -> dict[str, Any]:
        """All values by name."""
        return asdict(self)

    def cells(self) -> list[str]:
        """The values as a table shows them, in the order of ``HEADER``."""
        file = "" if self.file_bytes is None else f"{self.file_bytes / 1e6:.2f} MB"
        latency = f"{self.latency_ms:.1f} ± {self.spread_ms:.1f} ms ({self.device}, {self.runtime})"
        return [
            f"{self.parameters / 1e3:,.1f} K",
            f"{self.macs / 1e9:,.2f} G",
            f"{self.activations / 1e6:,.1f} M",
            f"{self.peak_memory / 1e6:,.0f} MB",
            latency,
            file,
        ]


def profile_model(
    model: SRModel, device: torch.device, runs: int = 5, file: Path | None = None, runtime: str = "torch"
) -> Profile:
    """Measure one network at a 1280x720 output, in the form that is deployed.

    Args:
        model: in eval mode; moved to ``device`` to be timed.
        runs: passes that are timed, after one that is not.
        file: where its weights lie, for their size.
        runtime: of :data:`RUNTIMES`, by which it is timed.

    Raises:
        UserError: the runtime cannot run the network, or it is an exported one, which has its own.
    """
    if runtime != "torch" and model.spec.runtime is not None:
        raise UserError(f"{model.spec.name} was exported and runs in its own runtime: leave out --runtime {runtime}.")
    # What another runtime runs cannot be looked into.
    counts = count_cost(model) if model.spec.runtime is None else model.net.cost()
    model = SRModel(collapse(model.net), model.spec).eval()
    size = _input_size(model)
    times = measure_latency(model, size, device, runs, runtime)
    quartiles = statistics.quantiles(times, n=4) if len(times) > 1 else [times[0]] * 3
    return Profile(
        **counts,
        latency_ms=statistics.median(times),
        spread_ms=(quartiles[2] - quartiles[0]) / 2,
        device=str(device),
        runtime=model.spec.runtime or runtime,
        file_bytes=file.stat().st_size if file is not None and file.is_file() else None,
    )


def count_cost(model: SRModel) -> dict[str, int]:
    """What of a network's cost follows from its operators: parameters, macs, activations and peak_memory of :class:`Profile`."""
    model = SRModel(collapse(model.net), model.spec).eval()
    macs, activations, peak = _count(model, _input_size(model))
    return {"parameters": model.num_parameters, "macs": macs, "activations": activations, "peak_memory": peak}


def _input_size(model: SRModel) -> tuple[int, int]:
    """Height and width of the input that gives ``FRAME``."""
    return tuple(round(side / model.spec.scale) for side in FRAME)


@torch.no_grad()
def measure_latency(
    model: SRModel, size: tuple[int, int], device: torch.device, runs: int, runtime: str = "torch"
) -> list[float]:
    """Milliseconds of each of ``runs`` passes over one image of this height and width; passes before are not counted.

    Raises:
        UserError: the runtime cannot run the network.
    """
    lr = torch.rand(1, 3, *size, device=device)
    run = RUNTIMES[runtime](model.to(device).eval(), lr)

    def one_pass() -> None:
        run(lr)
        _wait(device)

    _wait(device)
    return time_passes(one_pass, runs)


def time_passes(one_pass: Callable[[], object], runs: int) -> list[float]:
    """Milliseconds of each of ``runs`` passes, after three that are not counted: runtimes optimise in their first ones."""
    times = []
    for _ in range(runs + 3):
        start = time.perf_counter()
        one_pass()
        times.append((time.perf_counter() - start) * 1e3)
    return times[3:]


def _scripted(model: SRModel, lr: Tensor) -> Callable[[Tensor], Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a trace writes down of sizes is right for this size
            return torch.jit.freeze(torch.jit.trace(model, lr, check_trace=False))
    except (RuntimeError, TypeError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{model.spec.name} cannot be traced for TorchScript ({reason}); use --runtime torch."
        ) from error


RUNTIMES: dict[str, Callable[[SRModel, Tensor], Callable[[Tensor], Tensor]]] = {
    "torch": lambda model, lr: model,
    "torchscript": _scripted,
}
"""What a network can be timed in: PyTorch as it is, or TorchScript, traced and frozen."""


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _count(model: SRModel, size: tuple[int, int]) -> tuple[int, int, int]:
    """MACs, activations and peak memory; without computing anything where the network can run on the meta device."""
    try:
        return _count_on("meta", model, size)
    except (NotImplementedError, RuntimeError):
        return _count_on("cpu", model, size)


@torch.no_grad()
def _count_on(device: str, model: SRModel, size: tuple[int, int]) -> tuple[int, int, int]:
    copied = copy.deepcopy(model).to(device).eval()
    lr = torch.zeros(1, 3, *size, device=device)
    copied(lr)  # makes the constants that are kept for later passes, which are not to be counted
    with FlopCounterMode(display=False) as flops, _Tensors() as tensors:
        copied(lr)
    return flops.get_total_flops() // 2, tensors.activations, tensors.peak


_LAYERS = (torch.ops.aten.convolution.default, torch.ops.aten.addmm.default, torch.ops.aten.mm.default)
"""What a convolution or a linear layer becomes."""


class _Tensors(TorchDispatchMode):
    """Looks at all tensors made while this lasts.

    Attributes:
        peak: bytes that are alive at once, at most.
        activations: elements that convolutions and linear layers put out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.activations = self._alive = 0
        self._holders: Counter[int] = Counter()  # tensors that share each piece of memory

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in _LAYERS:
            self.activations += out.numel()
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, Tensor):
                self._add(value)
        return out

    def _add(self, value: Tensor) -> None:
        storage = value.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if self._holders[key] == 0:
            self._alive += size
            self.peak = max(self.peak, self._alive)
        self._holders[key] += 1
        weakref.finalize(value, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._holders[key] -= 1
        if self._holders[key] == 0:
            self._alive -= size
