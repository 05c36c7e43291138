"""Packages that can be called: ``sd.train`` is the package of the training loop, and ``sd.train(options)`` trains."""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any


def make_callable(package: str) -> None:
    """Let a call of a package of this one's, as ``sr_distill.train``, be that of the function of its name in :mod:`sr_distill.api`."""
    base, _, name = package.partition(".")

    class CallablePackage(types.ModuleType):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return getattr(importlib.import_module(f"{base}.api"), name)(*args, **kwargs)

    sys.modules[package].__class__ = CallablePackage
