"""How far a network sees: what decides whether an image cut into tiles comes out as in one piece."""

from __future__ import annotations

import copy
import math
import weakref

import torch
from torch import Tensor, nn

from .base import SRModel

PATCH = 16  # LR pixels
FARTHEST = 256
_THIN = 8  # height of a strip: a path along the image needs no more
_TOLERANCE = 1e-9  # of the largest output; what the order of sums in float64 does is far below it

_MEASURED: weakref.WeakKeyDictionary[nn.Module, int | None] = weakref.WeakKeyDictionary()


def receptive_field(model: SRModel) -> int | None:
    """Radius in LR pixels within which lies everything that an output pixel depends on.

    A patch of the input is made NaN; NaN outputs are those that depend on it: no ReLU hides a path, no small weight is lost,
    and no gradients are kept. The patch is at least as large as the windows of a window-based network, so that all places in
    a window count. Then an image is cut that far from it, which must change nothing. All on thin strips and on a copy of the
    network, on the CPU, where a convolution mixes no more pixels than it must.

    Returns:
        None where no context makes a tile equal to the whole image: the network sees all of it (pooled attention) or further
        than ``FARTHEST``, or the outcome depends on the size of the image (attention that is resized to it). A network with
        windows is as the whole where tiles begin at multiples of ``spec.size_multiple``.
    """
    if model.net not in _MEASURED:
        _MEASURED[model.net] = _measured(model)
    return _MEASURED[model.net]


def declare(model: SRModel, radius: int | None) -> None:
    """Say how far a network sees that cannot be looked into: one that another runtime runs."""
    _MEASURED[model.net] = radius


@torch.no_grad()
def _measured(model: SRModel) -> int | None:
    probe = copy.deepcopy(model.unrounded()).to("cpu", torch.float32).eval()
    probe.autocast = None
    radius = 0
    try:
        for sideways in (False, True):
            reached = _radius(probe, sideways)
            if reached is None:
                return None
            radius = max(radius, reached)
        probe.double()
        return radius if all(_survives_a_cut(probe, radius, sideways) for sideways in (False, True)) else None
    except RuntimeError:  # a foreign network that takes no float64, or no image so thin: nothing is known of it
        return None


def _radius(model: SRModel, sideways: bool) -> int | None:
    """How far from a NaN patch outputs are NaN, along one side; None: ``FARTHEST`` or further."""
    patch = _multiple(model, PATCH)
    for margin, trusted in ((_multiple(model, FARTHEST // 2), FARTHEST // 4), (_multiple(model, FARTHEST), FARTHEST)):
        strip = torch.full((1, 3, _multiple(model, _THIN), 2 * margin + patch), 0.5)
        strip[..., margin : margin + patch] = torch.nan
        reached = _run(model, strip, sideways).isnan().any(dim=(0, 1, 2)).nonzero()
        first, last = int(reached.min()) // model.spec.scale, int(reached.max()) // model.spec.scale
        radius = max(margin - first, last - (margin + patch - 1))
        if radius < trusted:  # a dilated convolution may leap over the end of a strip that is not much longer
            return radius
    return None


def _survives_a_cut(model: SRModel, radius: int, sideways: bool) -> bool:
    """Whether outputs further than ``radius`` from the end of an image stay the same when the image is cut there."""
    cut, context, scale = model.spec.size_multiple, radius, model.spec.scale
    length = _multiple(model, 2 * radius + 4 * PATCH) + cut
    generator = torch.Generator().manual_seed(0)
    strip = torch.rand((1, 3, _multiple(model, _THIN), length), generator=generator, dtype=torch.float64)
    whole = _run(model, strip, sideways)[..., (cut + context) * scale :]
    part = _run(model, strip[..., cut:], sideways)[..., context * scale :]
    return bool((whole - part).abs().max() <= _TOLERANCE * whole.abs().max())


def _run(model: SRModel, strip: Tensor, sideways: bool) -> Tensor:
    """The output for a strip (1, 3, short, long), or for the strip set upright; lying either way."""
    return model(strip.mT).mT if sideways else model(strip)


def _multiple(model: SRModel, length: int) -> int:
    """The least length from this one on that the network takes without padding."""
    return math.ceil(max(length, model.spec.min_size) / model.spec.size_multiple) * model.spec.size_multiple
