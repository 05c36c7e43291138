"""A static page that upscales photos in the browser: ONNX Runtime Web, the models, and nothing from outside."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path

from ..data import embedded
from ..data.bicubic import downscale_to_uint8
from ..data.images import read_rgb, to_pixels, to_tensor, write_png
from ..errors import UserError
from ..files import replace_folder, write_json
from ..models import SRModel
from ..models.receptive_field import receptive_field
from .formats import FORMATS
from .runtime import WIDE, signature_for, write

PACKAGE = "onnxruntime-web@1"
RUNTIME_FILES = (
    "ort.wasm.bundle.min.mjs",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
    "ort.webgpu.bundle.min.mjs",
    "ort-wasm-simd-threaded.asyncify.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
)
"""Of the npm package: a script for WebAssembly and one for WebGPU, each with its library."""

MARK = "models.json"


def write_demo(
    models: Sequence[SRModel],
    folder: Path,
    runtime: Path | None = None,
    say: Callable[[str], object] = lambda text: None,
) -> None:
    """Write the page; what stood there before, if it was such a page, is replaced when the new one is complete.

    Args:
        models: each is exported to ONNX, in float32, for RGB.
        runtime: folder with ``RUNTIME_FILES``; None: they are fetched from the npm registry.

    Raises:
        UserError: the files of the runtime cannot be had, or a model cannot be exported.
    """
    FORMATS["onnx"].check_installed()
    with replace_folder(folder, MARK) as work:
        for name in ("index.html", "app.js", "worker.js"):
            (work / name).write_text((files(__package__) / "web" / name).read_text(encoding="utf-8"), encoding="utf-8")
        (work / "ort").mkdir()
        say("ONNX Runtime Web ...")
        _copy_runtime(runtime, work / "ort")
        (work / "models").mkdir()
        write_json(
            work / MARK, [_add(model, work, say) for model in sorted(models, key=lambda model: model.num_parameters)]
        )
        photo = to_tensor(read_rgb(embedded.held_out_photos()[1]))
        write_png(work / "sample.png", to_pixels(downscale_to_uint8(photo, 2)))


def _add(model: SRModel, work: Path, say: Callable[[str], object]) -> dict[str, object]:
    """Export a model; what the page needs to know of it."""
    name, signature = model.spec.name, signature_for(model, "onnx", "rgb", None)
    say(f"{name} ...")
    file = f"models/{name.replace('/', '_')}.onnx"  # where several are called alike, names are paths
    write(model, "onnx", signature, "fp32", None, work / file)
    radius = receptive_field(model)
    return {
        "name": name,
        "file": file,
        "scale": model.spec.scale,
        "smallest": signature.smallest,
        "context": WIDE if radius is None else radius,
    }


def _copy_runtime(runtime: Path | None, target: Path) -> None:
    if runtime is not None:
        missing = [name for name in RUNTIME_FILES if not (runtime / name).is_file()]
        if missing:
            raise UserError(
                f"{runtime}: {', '.join(missing)} missing; these are files of dist/ of the npm package onnxruntime-web."
            )
        for name in RUNTIME_FILES:
            shutil.copyfile(runtime / name, target / name)
        return
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(
            "the files of ONNX Runtime Web come from the npm registry, and npm is not installed: install Node.js, or fetch the package "
            "onnxruntime-web elsewhere and name its folder dist/ with --runtime-files."
        )
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([npm, "pack", PACKAGE, "--silent"], cwd=folder, capture_output=True, text=True)
        if done.returncode != 0:
            reason = " ".join(done.stderr.split())[:200]
            raise UserError(
                f"npm could not fetch {PACKAGE} ({reason}): is there a network? Or name its dist/ with --runtime-files."
            )
        (archive,) = Path(folder).glob("*.tgz")
        with tarfile.open(archive) as package:
            for name in RUNTIME_FILES:
                with package.extractfile(f"package/dist/{name}") as source, open(target / name, "wb") as out:
                    shutil.copyfileobj(source, out)
