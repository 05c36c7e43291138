"""Upscaling of image files."""

from .files import find_inputs, output_paths, upscale_file
from .upscale import upscale

__all__ = ["find_inputs", "output_paths", "upscale", "upscale_file"]
