"""Networks: built by name, loaded from files, and seen by everybody else as RGB in [0, 1]."""

from ..options.architectures import Architecture
from ..registry import ARCHITECTURES, STUDENTS, TEACHERS, register_student, register_teacher
from .base import ModelSpec, SRModel, bicubic_model, upscale_uint8
from .blocks import collapse
from .build import build_model
from .deployed import Deployed
from .files import describe, load_model, model_key, save_model, tells_itself
from .for_int8 import for_int8
from .plain import as_model, share_weights
from .quantised import calibrate, quantised, ranges
from .teacher import Teacher, self_ensembled

__all__ = [
    "ARCHITECTURES",
    "STUDENTS",
    "TEACHERS",
    "Architecture",
    "Deployed",
    "ModelSpec",
    "SRModel",
    "Teacher",
    "as_model",
    "bicubic_model",
    "build_model",
    "calibrate",
    "collapse",
    "describe",
    "for_int8",
    "load_model",
    "model_key",
    "quantised",
    "ranges",
    "register_student",
    "register_teacher",
    "save_model",
    "self_ensembled",
    "share_weights",
    "tells_itself",
    "upscale_uint8",
]
