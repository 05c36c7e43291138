"""What is installed: the package with its data, and nothing that only a checkout has."""

from __future__ import annotations

import email
import os
import shutil
import subprocess
import sys
import zipfile

import pytest

from sr_distill import files
from sr_distill.data.images import read_rgb
from sr_distill.errors import UserError
from sr_distill.evaluate import known_sets
from sr_distill.zoo import ZOO

from ..conftest import ROOT, natural_image, write_image

TOP = ("LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py")
REQUIREMENTS = ("requirements.txt", "requirements-export.txt", "tests/requirements.txt")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this checkout by way of its sdist, built without pip, which would want a network."""
    pytest.importorskip("setuptools", "77", reason="setuptools is older than pyproject.toml needs")
    pytest.importorskip("setuptools.build_meta")
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in ("sr_distill", "options"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in TOP + REQUIREMENTS:
        (source / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    (source / "datasets/cache").mkdir(parents=True)
    (source / "datasets/photos.yml").touch()
    (source / "datasets/cache/stored.yml").touch()
    _build("sdist", source, built)
    shutil.unpack_archive(next(built.glob("*.tar.gz")), built / "sdist")
    _build("wheel", next((built / "sdist").iterdir()), built)
    return next(built.glob("*.whl"))


def _build(what, source, target):
    code = f"from setuptools.build_meta import build_{what}; build_{what}({str(target)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_wheel_has_the_data(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = ["sr_distill/py.typed", "sr_distill/evaluate/page.html"]
    expected += [f"sr_distill/evaluate/known_sets/{name}.yml" for name in known_sets()]
    expected += [f"sr_distill/zoo/{name}{suffix}" for name in ZOO for suffix in (".safetensors", ".md")]
    assert len(expected) >= 2 + 6 + 2 * 2
    assert not set(expected) - names
    assert not [name for name in names if not name.startswith(("sr_distill/", "sr_distill-"))]
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_wheel_has_the_examples(wheel):
    inside = "sr_distill/examples/"
    found = {name.removeprefix(inside) for name in zipfile.ZipFile(wheel).namelist() if name.startswith(inside)}
    options = [ROOT / "options/schema.json", *(ROOT / "options").rglob("*.yml")]
    assert len(options) > 10
    assert found == {path.relative_to(ROOT).as_posix() for path in options} | {"datasets/photos.yml"}


def test_the_metadata(wheel):
    """pip reads them: on which Python, what else, under which licence."""
    archive = zipfile.ZipFile(wheel)
    text = archive.read(next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))).decode()
    metadata = email.message_from_string(text)
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert 'basicsr<1.5,>=1.4.2; python_version < "3.13"' in metadata.get_all("Requires-Dist")


def test_what_is_installed_knows_its_data(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = "import sr_distill.evaluate as e, sr_distill.files as f; print(f.examples(), e.__file__, *e.known_sets())"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    examples, place, *names = done.stdout.split()
    assert examples == str(tmp_path / "site/sr_distill/examples")
    assert place.startswith(str(tmp_path / "site"))
    assert set(names) == set(known_sets())


def test_a_command_runs_from_the_wheel(wheel, tmp_path):
    """Outside of the checkout, with the zoo that the wheel brings."""
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    write_image(tmp_path / "in.png", natural_image(12, 16))
    arguments = ["inference", "-i", "in.png", "-o", "out.png", "--model", "mobile_sr_tiny_x4", "--device", "cpu"]
    code = f"import sys, sr_distill.cli as cli; sys.exit(cli.main({arguments}) or cli.main(['init', 'distil']))"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert read_rgb(tmp_path / "out.png").shape == (48, 64, 3)
    assert str(tmp_path / "site/sr_distill/examples/options/schema.json") in (tmp_path / "distil.yml").read_text()


def test_a_checkout_is_its_own_example(monkeypatch, tmp_path):
    assert files.examples() == ROOT
    monkeypatch.setattr(files, "__file__", str(tmp_path / "site/sr_distill/files.py"))
    with pytest.raises(UserError, match="without its example options"):
        files.examples()


def test_the_version_of_basicsr_can_be_read():
    """In its setup.py, on every Python, while scripts/venv.sh builds it."""
    code = "def version():\n exec('found = 1.4')\n return locals()['found']\nprint(version())"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "scripts/build_basicsr")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "1.4\n"
