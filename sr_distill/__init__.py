"""Distil a large image super-resolution teacher into a student small enough for a phone, and upscale images.

    import sr_distill as sd

    sd.upscale("photo.jpg").save("large.png")              # any image, by a model of the zoo
    model = sd.open_model("mobile_sr_tiny_x4")             # of the zoo, a file, a training run
    sd.evaluate(model, "Set5")                             # PSNR and SSIM by the protocol of the papers
    student = sd.train("options.yml")                      # what `sr-distill train` does
    distiller = sd.Distiller(student, teacher, losses)     # the objective, for a training loop of your own
    distiller = sd.ModuleDistiller(small, large, losses)   # the same for classifiers, regressors, any networks
    sd.save_model(network, "mine.safetensors")             # any network, in a file that rebuilds it

Images are RGB float in [0, 1], shape (B, 3, H, W), everywhere between modules. A module imports only what stands before it in
this line:

    options -> data -> models -> zoo -> infer -> features -> losses -> train -> evaluate -> export -> cli
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import evaluate, open_model, train, upscale
    from .distiller import Distiller
    from .errors import UserError
    from .models import save_model
    from .module_distiller import ModuleDistiller

__version__ = "0.1.0"
__all__ = [
    "Distiller",
    "ModuleDistiller",
    "UserError",
    "__version__",
    "evaluate",
    "open_model",
    "save_model",
    "train",
    "upscale",
]

_HOMES = {
    "Distiller": "distiller",
    "ModuleDistiller": "module_distiller",
    "UserError": "errors",
    "save_model": "models",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: importing the package alone costs nothing."""
    if name.startswith("_") or name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in ("evaluate", "train"):  # packages that can be called
        return importlib.import_module(f".{name}", __name__)
    return getattr(importlib.import_module(f".{_HOMES.get(name, 'api')}", __name__), name)


def __dir__() -> list[str]:
    """What the package offers."""
    return sorted(__all__)
