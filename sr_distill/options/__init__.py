"""Options: strict, typed, described field by field, never changed after loading."""

from .architectures import ArchitectureOptions
from .load import dump_options, load_options, validate
from .losses import LossOptions
from .schema import RunOptions

__all__ = ["ArchitectureOptions", "LossOptions", "RunOptions", "dump_options", "load_options", "validate"]
