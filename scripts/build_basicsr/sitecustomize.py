"""Lets basicsr be built on Python 3.13 and newer; on PYTHONPATH while pip builds it (scripts/venv.sh), and never else.

setup.py of basicsr 1.4.2, the last release, reads its version in a function by ``exec(...)`` and then ``locals()["__version__"]``.
From 3.13 on (PEP 667) ``exec`` without namespaces no longer writes into the function that calls it. Here it does again.
"""

import builtins
import sys

_exec = builtins.exec


def _exec_into_the_caller(source, /, globals=None, locals=None, **closure):  # noqa: ANN001, ANN003, ANN202
    caller = sys._getframe(1)
    if globals is None:
        globals = caller.f_globals
        locals = caller.f_locals if locals is None else locals
    _exec(source, globals, locals, **closure)


builtins.exec = _exec_into_the_caller
