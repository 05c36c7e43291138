"""Distillation between any two networks: classifiers, regressors, whatever has layers and an output."""

from .distiller import ModuleDistiller

__all__ = ["ModuleDistiller"]
