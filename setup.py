"""What pyproject.toml cannot say: the wheel holds the example options, which lie at the top of the repository, in `sr_distill/examples`."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

EXAMPLES = ("options/schema.json", "options/**/*.yml", "datasets/*.yml")


class BuildWithExamples(build_py):
    """As ever, and copies the examples; ``sr_distill.files.examples`` finds them."""

    def run(self) -> None:
        """Copy, unless the package is installed in place (``pip install -e``), where they are found at the top."""
        super().run()
        if self.editable_mode:
            return
        folder = Path(self.build_lib, "sr_distill", "examples")
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier build
        for pattern in EXAMPLES:
            for file in Path().glob(pattern):
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, folder / file)


setup(cmdclass={"build_py": BuildWithExamples})
