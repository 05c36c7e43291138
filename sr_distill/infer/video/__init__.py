"""Videos: frame by frame, in constant memory, with everything else in the file kept; what is done stays done."""

from .film import upscale_video

__all__ = ["upscale_video"]
