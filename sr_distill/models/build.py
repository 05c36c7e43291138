"""Every network module, imported so that its options are in the registries, and how to build one by its options."""

from __future__ import annotations

from ..errors import UserError
from ..options.architectures import Architecture
from . import basicsr  # noqa: F401
from .base import ModelSpec, SRModel
from .published import bsrn, carn_m, efdn, hit_srf, imdn, pan, rfdn, rlfn  # noqa: F401
from .students import ecbsr, fsrcnn, mobile_sr  # noqa: F401


def build_model(architecture: Architecture, scale: int) -> SRModel:
    """Build a network with random weights.

    Raises:
        UserError: the network cannot be built for this scale.
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
    return SRModel(architecture.build(scale), spec)
