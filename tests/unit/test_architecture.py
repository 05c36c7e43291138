"""The order of the package: a module imports only what stands before it."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from ..conftest import ROOT

ORDER = [
    "errors",
    "registry",
    "plugins",
    "files",
    "devices",
    "console",
    "callable",
    "contracts",
    "samples",
    "precision",
    "options",
    "data",
    "models",
    "zoo",
    "infer",
    "features",
    "losses",
    "train",
    "distiller",
    "module_distiller",
    "callbacks",
    "evaluate",
    "training",
    "export",
    "api",
    "cli",
    "__main__",
]
FILES = sorted((ROOT / "sr_distill").rglob("*.py"))


def _imports(path):
    """Top-level modules of this package that a file imports."""
    inside = path.relative_to(ROOT / "sr_distill").with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = inside[: len(inside) - node.level]
            if base:
                yield base[0]
            elif node.module:
                yield node.module.split(".")[0]
            else:
                yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sr_distill."):
            yield node.module.split(".")[1]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_only_what_stands_before(path):
    own = path.relative_to(ROOT / "sr_distill").parts[0].removesuffix(".py")
    if own == "__init__":
        return
    later = [module for module in _imports(path) if module in ORDER and ORDER.index(module) > ORDER.index(own)]
    assert not later, f"{path.name} in {own} imports {later}, which stand after it"


def test_every_module_has_a_place():
    modules = {path.relative_to(ROOT / "sr_distill").parts[0].removesuffix(".py") for path in FILES} - {"__init__"}
    assert modules == set(ORDER)


def test_importing_the_package_does_no_work():
    code = "import sys, sr_distill; print('torch' in sys.modules, 'basicsr' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_importing_the_registries_does_not_import_basicsr_or_spandrel():
    code = (
        "import sys, sr_distill.models, sr_distill.losses;"
        "print([m for m in ('basicsr', 'spandrel', 'lpips', 'skimage') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_public_things_are_documented(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), f"{path} has no docstring"
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            nested = any(
                isinstance(outer, ast.FunctionDef) and node in ast.walk(outer) and outer is not node
                for outer in ast.walk(tree)
            )
            private = any(
                isinstance(outer, ast.ClassDef) and outer.name.startswith("_") and node in outer.body
                for outer in ast.walk(tree)
            )
            assert nested or private or ast.get_docstring(node), f"{path.name}: {node.name} has no docstring"
