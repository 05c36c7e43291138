"""The networks that can be built by name, and how to build one."""

from __future__ import annotations

from ..errors import UserError
from ..options import ArchitectureOptions
from . import basicsr
from .base import Architecture, ModelSpec, SRModel
from .published import bsrn, carn_m, efdn, hit_srf, imdn, pan, rfdn, rlfn
from .students import ecbsr, fsrcnn, mobile_sr

STUDENTS: dict[str, Architecture] = {
    "compact": basicsr.COMPACT,
    "ecbsr": ecbsr.ARCHITECTURE,
    "fsrcnn": fsrcnn.ARCHITECTURE,
    "mobile_sr": mobile_sr.ARCHITECTURE,
}
"""Networks small enough for a phone."""

TEACHERS: dict[str, Architecture] = {
    "bsrn": bsrn.ARCHITECTURE,
    "carn_m": carn_m.ARCHITECTURE,
    "edsr": basicsr.EDSR,
    "efdn": efdn.ARCHITECTURE,
    "hit_srf": hit_srf.ARCHITECTURE,
    "imdn": imdn.ARCHITECTURE,
    "msrresnet": basicsr.MSRRESNET,
    "pan": pan.ARCHITECTURE,
    "rcan": basicsr.RCAN,
    "rfdn": rfdn.ARCHITECTURE,
    "rlfn": rlfn.ARCHITECTURE,
    "rrdbnet": basicsr.RRDBNET,
    "swinir": basicsr.SWINIR,
}
"""Networks to distil from. They can be trained like students, too: a teacher comes from somewhere."""

ARCHITECTURES: dict[str, Architecture] = STUDENTS | TEACHERS


def build_model(options: ArchitectureOptions, scale: int) -> SRModel:
    """Build a network with random weights.

    Raises:
        UserError: the network cannot be built for this scale.
    """
    architecture = ARCHITECTURES[options.type]
    if scale not in architecture.scales:
        allowed = ", ".join(str(s) for s in architecture.scales)
        raise UserError(f"{options.type} cannot be built for scale {scale}; allowed: {allowed}.")
    spec = ModelSpec(
        name=options.type,
        scale=scale,
        color=getattr(options, "color", "rgb"),
        value_range=architecture.value_range,
        size_multiple=architecture.size_multiple(options, scale),
        min_size=architecture.min_size,
        architecture=options,
    )
    return SRModel(architecture.build(options, scale), spec)
