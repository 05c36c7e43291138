"""Networks that are trained with the rounding to 8 bits that their int8 export will have (quantisation-aware training)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..samples import extremes
from .base import ModelSpec, SRModel
from .blocks import Collapsible, collapse

Limits = tuple[float, float]
"""Least and largest value of a map, zero among them."""

Ranges = Mapping[str, tuple[Limits | None, Limits]]
"""By the name of a convolution: of what goes in, None where another has rounded it, and of what comes out, after its ReLU."""

_LEVELS = 127
"""Of a weight to either side of zero: -128 is left out, so that zero is in the middle."""


class Range(nn.Module):
    """Rounds a map to 256 levels between the least and the largest value it has, followed by a moving average over training steps.

    ``q(x) = s (clip(round(x / s) + z, 0, 255) - z)``, ``s = (max - min) / 255``, with zero among the levels; the gradient passes where
    nothing is clipped (straight-through). In eval mode the range stays. The arithmetic is that of ``torch.fused_moving_avg_obs_fake_quant``.

    Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018, section 3.

    Args:
        momentum: share of a step's range in the moving average.
    """

    def __init__(self, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.track_running_stats = True  # as of batch normalisation: whether it follows
        self.register_buffer("least", torch.tensor(float("inf")))
        self.register_buffer("largest", torch.tensor(float("-inf")))
        self.register_buffer("step", torch.ones(1))
        self.register_buffer("zero", torch.zeros(1, dtype=torch.int32))

    @property
    def limits(self) -> Limits:
        """The values of the first and of the last level."""
        step, zero = float(self.step), int(self.zero)
        return -zero * step, (255 - zero) * step

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        if self.training and self.track_running_stats:
            self._round(extremes(x), follow=True)  # of all processes
        return self._round(x, follow=False)

    def _round(self, x: Tensor, follow: bool) -> Tensor:
        follows = torch.tensor([int(follow)], device=x.device)
        always = torch.ones_like(follows)
        return torch.fused_moving_avg_obs_fake_quant(
            x, follows, always, self.least, self.largest, self.step, self.zero, self.momentum, 0, 255, -1
        )


class FakeQuantisedConv2d(Collapsible, nn.Conv2d):
    """A convolution of rounded maps with rounded weights: ``y = q(q(W) * q(x) + b)``; each output channel of ``W`` has its own step.

    Args:
        conv: whose weights it takes.
        momentum: of the ranges of its maps.
        rounds_input: whether its input is not rounded yet.
        rectifies: whether a ReLU follows, which a runtime computes with the convolution: what comes out of that is rounded.
    """

    rounds = True

    def __init__(self, conv: nn.Conv2d, momentum: float, rounds_input: bool, rectifies: bool) -> None:
        _init_like(self, conv)
        self.input_range = Range(momentum) if rounds_input else nn.Identity()
        self.output_range = Range(momentum)
        self.rectifies = rectifies

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H, W)."""
        out = self._conv_forward(self.input_range(x), rounded(self.weight), self.bias)
        return self.output_range(out.relu() if self.rectifies else out)

    def collapse(self) -> nn.Module:
        """The plain convolution, which an exporter quantises."""
        conv = nn.Conv2d.__new__(nn.Conv2d)
        _init_like(conv, self)
        return conv


def _init_like(conv: nn.Conv2d, other: nn.Conv2d) -> None:
    """Initialise a convolution with the settings and the weights of another."""
    settings = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    with torch.device("meta"):  # draws nothing
        nn.Conv2d.__init__(conv, **{name: getattr(other, name) for name in settings}, bias=other.bias is not None)
    conv.weight, conv.bias = other.weight, other.bias


def rounded(weight: Tensor) -> Tensor:
    """Weights (out, ...) rounded to 255 levels for each output channel, symmetric around zero; the gradient passes as it is."""
    largest = weight.detach().abs().amax(dim=tuple(range(1, weight.dim()))).clamp_min(torch.finfo(weight.dtype).tiny)
    zero = torch.zeros_like(largest, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, largest / _LEVELS, zero, 0, -_LEVELS, _LEVELS)


def quantised(model: SRModel, momentum: float) -> SRModel:
    """The model in its deployed form, rounded as its int8 export in ONNX: weights, and each map where it is made.

    Maps are those that go into convolutions and those that come out of them; a sum, an anchor and colours are computed in floats. (After
    another activation than ReLU a long skip reads the map before it is rounded, in the file after: half a level.)

    Raises:
        ValueError: see :func:`check_has_convolutions`.
    """
    check_has_convolutions(model)
    return with_rounding(model.collapsed().unrounded(), momentum).train(model.training)


def check_has_convolutions(model: SRModel) -> None:
    """Raise where a model cannot be saved with the ranges of its convolutions.

    Raises:
        ValueError: it has no convolutions that stay as they are when it is saved.
    """
    plain = model.collapsed().unrounded()
    net = collapse(plain.net)
    is_saved = plain.spec.architecture is not None and net.state_dict().keys() == plain.net.state_dict().keys()
    if not is_saved or not any(type(module) is nn.Conv2d for module in net.modules()):
        raise ValueError(f"{model.spec.name} has no file of plain convolutions")


def with_rounding(model: SRModel, momentum: float) -> SRModel:
    """A copy of a model in its deployed form, of any kind, that rounds as :func:`quantised` has it; in eval mode."""
    net = collapse(model.net)
    names = {module: name for name, module in net.named_modules() if type(module) is nn.Conv2d}
    rounding = SRModel(net, model.spec).eval()
    for conv, settings in _settings(rounding, list(names)).items():
        net.set_submodule(names[conv], FakeQuantisedConv2d(conv, momentum, *settings))
    return rounding


@torch.no_grad()
def calibrate(model: SRModel, images: Iterable[Tensor]) -> None:
    """Set the ranges of a rounding model to the least and the largest values that its maps have over images (B, 3, H, W) in [0, 1]."""
    found = [module for module in model.modules() if isinstance(module, Range)]
    was_training, momenta = model.training, [module.momentum for module in found]
    for module in found:
        module.momentum = 1.0  # its range is that of the last image
    limits = []
    for image in images:
        model.train()(image)
        limits.append([torch.stack([module.least, module.largest]) for module in found])
    for module, momentum, own in zip(found, momenta, zip(*limits)):
        module(torch.cat(own))
        module.momentum = momentum
    model.train(was_training)


def ranges(net: nn.Module) -> Ranges:
    """The ranges of a rounding network; none of another one."""
    return {
        name: (module.input_range.limits if isinstance(module.input_range, Range) else None, module.output_range.limits)
        for name, module in net.named_modules()
        if isinstance(module, FakeQuantisedConv2d)
    }


@contextmanager
def hooked(hooks: Iterable[tuple[nn.Module, Callable[..., Tensor | None]]]) -> Iterator[None]:
    """Let functions see what goes into modules and comes out, as PyTorch's forward hooks do, and no longer."""
    handles = [module.register_forward_hook(hook) for module, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _settings(model: SRModel, convs: list[nn.Conv2d]) -> dict[nn.Conv2d, tuple[bool, bool]]:
    """Whether each convolution gets a map that is not rounded yet, and whether a ReLU follows; seen in a pass over a small image."""
    into: dict[nn.Module, Tensor] = {}
    out_of: dict[nn.Module, Tensor] = {}

    def note(module: nn.Module, args: tuple[Tensor], out: Tensor) -> None:
        into[module], out_of[module] = args[0], out

    relus = [module for module in model.net.modules() if isinstance(module, nn.ReLU)]
    with hooked((module, note) for module in (*convs, *relus)):
        model(torch.zeros(1, 3, *[_side(model.spec)] * 2, device=next(model.net.parameters()).device))
    convs = [conv for conv in convs if conv in into]  # those that take part
    rectified = {conv: relu for conv in convs for relu in relus if into.get(relu) is out_of[conv]}
    rounded_maps = [out_of[rectified.get(conv, conv)] for conv in convs]
    return {conv: (not any(into[conv] is each for each in rounded_maps), conv in rectified) for conv in convs}


def _side(spec: ModelSpec) -> int:
    return -(-max(8, spec.min_size) // spec.size_multiple) * spec.size_multiple
