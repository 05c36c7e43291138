"""Options: strict, typed, described field by field, never changed after loading."""

from .architectures import ArchitectureOptions
from .load import dump_options, load_options, parse_architecture, validate
from .losses import LossOptions
from .remarks import remarks_on_options
from .run import RunOptions

__all__ = [
    "ArchitectureOptions",
    "LossOptions",
    "RunOptions",
    "dump_options",
    "load_options",
    "parse_architecture",
    "remarks_on_options",
    "validate",
]
