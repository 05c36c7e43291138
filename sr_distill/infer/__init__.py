"""Upscaling of image files."""

from .files import find_inputs, output_paths, upscale_file
from .upscale import upscale
from .whole import WholeOutputs

__all__ = ["WholeOutputs", "find_inputs", "output_paths", "upscale", "upscale_file"]
