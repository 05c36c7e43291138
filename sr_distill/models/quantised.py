"""Networks that are trained with the rounding to 8 bits that their int8 export will have (quantisation-aware training)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .base import ModelSpec, SRModel
from .blocks import Collapsible, collapse

_ACTIVATIONS = (nn.ReLU, nn.PReLU, nn.LeakyReLU, nn.SiLU, nn.GELU)
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
        self.register_buffer("least", torch.tensor(float("inf")))
        self.register_buffer("largest", torch.tensor(float("-inf")))
        self.register_buffer("step", torch.ones(1))
        self.register_buffer("zero", torch.zeros(1, dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        follow = torch.tensor([int(self.training)], device=x.device)
        always = torch.ones_like(follow)
        return torch.fused_moving_avg_obs_fake_quant(
            x, follow, always, self.least, self.largest, self.step, self.zero, self.momentum, 0, 255, -1
        )


class FakeQuantisedConv2d(Collapsible, nn.Conv2d):
    """A convolution of rounded maps with rounded weights: ``y = q(W) * q(x) + b``; each output channel of ``W`` has its own step.

    Args:
        conv: whose weights it takes.
        momentum: of the ranges of its maps.
        rounds_output: whether its output is rounded, too: where no activation follows, whose output the next convolution rounds.
    """

    rounds = True

    def __init__(self, conv: nn.Conv2d, momentum: float, rounds_output: bool) -> None:
        _init_like(self, conv)
        self.input_range = Range(momentum)
        self.output_range = Range(momentum) if rounds_output else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H, W)."""
        return self.output_range(self._conv_forward(self.input_range(x), rounded(self.weight), self.bias))

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
    """The model in its deployed form, every convolution rounded as in its int8 export; it is saved as that form in floats.

    Raises:
        ValueError: it has no convolutions that stay as they are when it is saved.
    """
    plain = model.collapsed()
    net = collapse(plain.net)
    names = [name for name, module in net.named_modules() if type(module) is nn.Conv2d]
    if not names or plain.spec.architecture is None or net.state_dict().keys() != plain.net.state_dict().keys():
        raise ValueError(f"{model.spec.name} has no file of plain convolutions")
    rounding = SRModel(net, plain.spec).eval()
    for name, rounds in [(name, not _is_followed_by_activation(rounding, name)) for name in names]:
        net.set_submodule(name, FakeQuantisedConv2d(net.get_submodule(name), momentum, rounds))
    return rounding.train(model.training)


@torch.no_grad()
def _is_followed_by_activation(model: SRModel, name: str) -> bool:
    """Whether what a convolution puts out goes into an activation; seen in a pass over a small image."""
    outputs: list[Tensor] = []
    inputs: list[Tensor] = []
    hooks = [model.net.get_submodule(name).register_forward_hook(lambda module, args, out: outputs.append(out))]
    hooks += [
        module.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
        for module in model.net.modules()
        if isinstance(module, _ACTIVATIONS)
    ]
    try:
        model(torch.zeros(1, 3, *[_side(model.spec)] * 2, device=next(model.net.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    return any(given is out for given in inputs for out in outputs)


def _side(spec: ModelSpec) -> int:
    return -(-max(8, spec.min_size) // spec.size_multiple) * spec.size_multiple
