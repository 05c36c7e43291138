"""What is installed: the package with its data, and nothing that only a checkout has."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile

import pytest

from sr_distill.evaluate import known_sets
from sr_distill.zoo import ZOO

from ..conftest import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this checkout, built without pip, which would want a network."""
    pytest.importorskip("setuptools.build_meta", reason="setuptools is not installed")
    source = tmp_path_factory.mktemp("source")
    hidden = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "sr_distill", source / "sr_distill", ignore=hidden)
    for name in ("pyproject.toml", "README.md", "requirements.txt", "tests/requirements.txt"):
        (source / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    build = "from setuptools.build_meta import build_wheel; build_wheel('dist')"
    done = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True)
    if "bdist_wheel" in done.stderr and done.returncode:
        pytest.skip("this setuptools cannot build wheels (70.1 can)")
    assert done.returncode == 0, done.stderr
    return next((source / "dist").glob("*.whl"))


def test_the_wheel_has_the_data(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = ["sr_distill/py.typed", "sr_distill/evaluate/page.html"]
    expected += [f"sr_distill/evaluate/known_sets/{name}.yml" for name in known_sets()]
    expected += [f"sr_distill/zoo/{name}{suffix}" for name in ZOO for suffix in (".safetensors", ".md")]
    assert len(expected) >= 2 + 6 + 2 * 2
    assert not set(expected) - names
    assert not [name for name in names if name.startswith(("tests/", "scripts/", "datasets/"))]


def test_what_is_installed_knows_the_sets(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = "import sr_distill.evaluate as e; print(e.__file__, *e.known_sets())"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    place, *names = done.stdout.split()
    assert place.startswith(str(tmp_path / "site"))
    assert set(names) == set(known_sets())
