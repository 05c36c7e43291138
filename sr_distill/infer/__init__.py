"""Upscaling of images of any size, and of files of any kind."""

from .batch import Outcome, upscale_files
from .enlarge import Enlarger, Upscalers
from .files import VIDEO_SUFFIXES, Job, find_inputs, jobs_for
from .picture import MOST_MEGAPIXELS, Picture, open_picture, picture_of
from .scale import Scale, parse_scale
from .upscale import TILE, Upscaler, upscale
from .whole import WholeOutputs
from .write import FORMATS, to_image, write_picture

__all__ = [
    "FORMATS",
    "MOST_MEGAPIXELS",
    "TILE",
    "VIDEO_SUFFIXES",
    "Enlarger",
    "Job",
    "Outcome",
    "Picture",
    "Scale",
    "Upscaler",
    "Upscalers",
    "WholeOutputs",
    "find_inputs",
    "jobs_for",
    "open_picture",
    "parse_scale",
    "picture_of",
    "to_image",
    "upscale",
    "upscale_files",
    "write_picture",
]
