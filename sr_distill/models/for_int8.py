"""What a trained network is given before it is rounded to 8 bits without further training: even channels, and corrected biases."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from .base import SRModel
from .blocks import collapse
from .quantised import FakeQuantisedConv2d, calibrate, hooked, with_rounding

_EXPONENT = 0.5
_LEAST = 0.01
"""Of the largest channel: one that is dark on all photos may not be so on another image, and would leave the range."""
_ROUNDS = 2
"""Corrections of each bias: what its ReLU cuts off changes with it."""


def for_int8(model: SRModel, images: Sequence[Tensor]) -> SRModel:
    """A copy of a model, in its deployed form, that loses less in 8 bits: :func:`equalise`, then :func:`correct_biases`.

    A model that was trained with the rounding is given back as it is.

    Args:
        model: on the CPU.
        images: RGB (1, 3, H, W) in [0, 1], of one size, such as it will see.
    """
    if model.is_quantised:
        return model
    prepared = SRModel(collapse(model.net), model.collapsed().spec).eval()
    equalise(prepared, images)
    correct_biases(prepared, images)
    return prepared


@torch.no_grad()
def equalise(model: SRModel, images: Sequence[Tensor]) -> None:
    """Divide each channel of the maps inside a network by ``m^1/2``, m its largest value, and give the factor to the kernels that read it.

    A map in 8 bits has 256 levels between its least and its largest value, whichever channel has these; weights have levels of their
    own for each output channel, so that half of a channel's excess is theirs to bear. Exact in floats: convolutions are linear, and
    ReLU, PReLU and sums pass positive factors on. Maps that anything else makes or reads stay as they are.

    Args:
        model: of plain convolutions; its weights are changed.
        images: as of :func:`for_int8`.

    Sources: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, section 4.1; how the
    factor is found, from maps: Xiao et al., "SmoothQuant", ICML 2023, equation 4.
    """
    inputs = _inputs(model, images)
    program = torch.export.export(model.net, (inputs[0],)).module()
    factors = _factors(program, inputs)
    for conv in filter(_is_convolution, program.graph.nodes):
        source, weight, bias = (*conv.args[:3], None)[:3]
        kernel = model.net.get_parameter(weight.target)
        if source in factors:
            kernel *= factors[source][None, :, None, None]
        if conv in factors:
            kernel /= factors[conv][:, None, None, None]
            if bias is not None:
                model.net.get_parameter(bias.target).div_(factors[conv])


@torch.no_grad()
def correct_biases(model: SRModel, images: Sequence[Tensor]) -> None:
    """Change the biases so that each convolution, rounded and behind rounded ones, has the means that it has in floats.

    ``b += E[y] - E[q(y)]`` for each channel, one convolution after the other, y what comes out of it, after its ReLU: rounding errs to
    one side where many values are, and the sides add up over a network's depth.

    Args:
        model: of plain convolutions; its biases are changed.
        images: as of :func:`for_int8`.

    Source: Nagel et al., as above, section 4.2, with means that are measured.
    """
    rounding = with_rounding(model, momentum=1.0)
    calibrate(rounding, images)
    convs = {name: module for name, module in rounding.net.named_modules() if isinstance(module, FakeQuantisedConv2d)}
    wanted: dict[str, list[Tensor]] = {name: [] for name in convs}

    def note(name: str, module: nn.Module, args: tuple[Tensor], out: Tensor) -> None:
        wanted[name].append((out.relu() if convs[name].rectifies else out).mean((0, 2, 3)))

    def correct(name: str, module: nn.Module, args: tuple[Tensor], out: Tensor) -> Tensor:
        if module.bias is not None and len(wanted[name]) == 1:  # one that is used again has no mean of its own
            for _ in range(_ROUNDS):
                module.bias += wanted[name][0] - out.mean((0, 2, 3))
                out = module.forward(*args)
            model.net.get_submodule(name).bias.copy_(module.bias)
        return out  # which the convolutions behind it see

    batch = torch.cat(list(images))
    with hooked((model.net.get_submodule(name), functools.partial(note, name)) for name in convs):
        model(batch)
    with hooked((module, functools.partial(correct, name)) for name, module in convs.items()):
        rounding.eval()(batch)


def _inputs(model: SRModel, images: Sequence[Tensor]) -> list[Tensor]:
    """What the network itself is given of images: padded, in its range and colours."""
    found: list[Tensor] = []
    with hooked([(model.net, lambda module, args, out: found.append(args[0]))]):
        for image in images:
            model(image)
    return found


def _factors(program: GraphModule, inputs: Sequence[Tensor]) -> dict[Node, Tensor]:
    """What each map is divided by, (C,), of geometric mean 1."""
    groups = _scaled_alike(program)
    watched = _Largest(program, [node for group in groups for node in group if not _is_rounded_after_its_relu(node)])
    for image in inputs:
        watched.run(image)
    factors = {}
    for group in groups:
        values = torch.stack([watched.found[node] for node in group if node in watched.found]).amax(0)
        if values.max() > 0:
            factor = values.clamp_min(_LEAST * values.max()) ** _EXPONENT
            factors |= dict.fromkeys(group, factor / factor.log().mean().exp())
    return factors


def _scaled_alike(program: GraphModule) -> list[set[Node]]:
    """The maps that may be scaled, those together that must be scaled alike."""
    group_of = {node: {node} for node in program.graph.nodes}
    staying: set[Node] = set()
    for node in program.graph.nodes:
        maps = [each for each in node.all_input_nodes if each.op != "get_attr"]
        if _passes_factors_on(node, maps):
            joined = set().union(*(group_of[each] for each in (node, *maps)))
            group_of |= dict.fromkeys(joined, joined)
        elif not _is_convolution(node):
            staying |= {node, *maps}
    groups = {id(group): group for group in group_of.values()}.values()
    return [group for group in groups if group.isdisjoint(staying)]


class _Largest(Interpreter):
    """Runs a program and notes the largest absolute value of each channel of some maps, (C,)."""

    def __init__(self, program: GraphModule, nodes: Sequence[Node]) -> None:
        super().__init__(program)
        self._nodes, self.found = set(nodes), {}

    def run_node(self, n: Node) -> Any:
        """See the base class."""
        out = super().run_node(n)
        if n in self._nodes:
            values = out.abs().amax((0, 2, 3))
            self.found[n] = torch.maximum(self.found.get(n, values), values)
        return out


def _is_convolution(node: Node) -> bool:
    """Whether it is one of all channels, with weights that nothing else reads."""
    if not _is(node, "aten.conv2d"):
        return False
    groups = node.args[6] if len(node.args) > 6 else 1
    own = [each for each in node.args[1:3] if each is not None]
    return groups == 1 and all(each.op == "get_attr" and len(each.users) == 1 for each in own)


def _passes_factors_on(node: Node, maps: Sequence[Node]) -> bool:
    """Whether what comes out is as many times as large as what goes in, where that is positive."""
    if _is(node, "aten.add.Tensor", "aten.sub.Tensor"):
        shapes = {tuple(each.meta["val"].shape) for each in (node, *maps)}
        return not node.kwargs and len(shapes) == 1 and all(each in maps for each in node.args)
    return _is(node, "aten.relu.", "aten.prelu.", "aten.leaky_relu.")


def _is_rounded_after_its_relu(node: Node) -> bool:
    return _is_convolution(node) and all(_is(user, "aten.relu.") for user in node.users)


def _is(node: Node, *targets: str) -> bool:
    return node.op == "call_function" and str(node.target).startswith(targets)
