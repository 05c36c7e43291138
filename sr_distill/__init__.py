"""Distil a large image super-resolution teacher into a student small enough for a phone.

Images are RGB float in [0, 1], shape (B, 3, H, W), everywhere between modules. A module imports only what
stands before it in this line:

    options -> data -> models -> zoo -> infer -> features -> losses -> train -> evaluate -> cli
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .distiller import Distiller

__version__ = "0.1.0"
__all__ = ["Distiller", "__version__"]


def __getattr__(name: str) -> Any:
    """Import :class:`Distiller` when it is asked for: importing the package alone costs nothing."""
    if name == "Distiller":
        from .distiller import Distiller

        return Distiller
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
