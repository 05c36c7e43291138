"""Photos into aligned training crops."""

from .bicubic import downscale_to_uint8, imresize
from .color import luma, rgb_to_ycbcr, ycbcr_to_rgb
from .crops import ResidentBatches, ResidentCrops, StepBatches, step_loader
from .packed import PairStore, open_pairs

__all__ = [
    "PairStore",
    "ResidentBatches",
    "ResidentCrops",
    "StepBatches",
    "downscale_to_uint8",
    "imresize",
    "luma",
    "open_pairs",
    "rgb_to_ycbcr",
    "step_loader",
    "ycbcr_to_rgb",
]
