"""Every network module, imported so that its options are in the registries, and how to build one by its options."""

from __future__ import annotations

import torch

from ..errors import UserError
from ..options.architectures import Architecture
from ..plugins import plugin_of
from . import basicsr  # noqa: F401
from .base import ModelSpec, SRModel
from .published import bsrn, carn_m, edsr, efdn, hit_srf, imdn, pan, rfdn, rlfn  # noqa: F401
from .students import ecbsr, fsrcnn, mobile_sr  # noqa: F401


def build_model(architecture: Architecture, scale: int) -> SRModel:
    """Build a network with random weights.

    Raises:
        UserError: the network cannot be built for this scale, or one of a plugin gives an image of another size.
    """
    if scale not in architecture.scales:
        allowed = ", ".join(str(s) for s in architecture.scales)
        raise UserError(f"{architecture.type} cannot be built for scale {scale}; allowed: {allowed}.")
    spec = ModelSpec(
        name=architecture.type,
        scale=scale,
        color=getattr(architecture, "color", "rgb"),
        value_range=architecture.value_range,
        size_multiple=architecture.size_multiple(scale),
        min_size=architecture.min_size,
        architecture=architecture,
    )
    model = SRModel(architecture.build(scale), spec)
    if plugin_of(type(architecture)) is not None:
        _try_out(model)
    return model


@torch.no_grad()
def _try_out(model: SRModel) -> None:
    """A network of the user's own must keep what every network promises."""
    spec, side = model.spec, max(16, model.spec.min_size)
    shape = tuple(model.eval()(torch.zeros(1, 3, side, side)).shape)
    model.train()
    if shape != (1, 3, side * spec.scale, side * spec.scale):
        raise UserError(
            f"{spec.name} at scale {spec.scale} makes {shape} of (1, 3, {side}, {side}): a network gives (B, C, H*scale, W*scale)."
        )
