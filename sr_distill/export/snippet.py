"""What an app writes to run an exported model: a few lines for each runtime, filled in for the model at hand."""

from __future__ import annotations

from importlib.resources import files
from string import Template

from .graph import Signature

_VALUES = {
    "rgb": "float32 {shape}, R, G and B planes, values in [0, 1]",
    "y": "float32 {shape}, one plane: luma of BT.601, values in [16/255, 235/255]",
    "uint8": "uint8 {shape}, R G B of each pixel in turn, values from 0 to 255",
}


def describe(signature: Signature, output: bool = False) -> str:
    """Type, shape, order and range of values of what goes in or comes out."""
    factor = signature.scale if output else 1
    times = "" if factor == 1 else f"{factor}*"
    sides = signature.size or (None, None)
    height, width = (f"{times}{name}" if side is None else str(side * factor) for side, name in zip(sides, "HW"))
    shape = (
        f"1x{height}x{width}x3" if signature.io == "uint8" else f"1x{1 if signature.io == 'y' else 3}x{height}x{width}"
    )
    return _VALUES[signature.io].format(shape=shape)


def snippets(runtime: str, file: str, name: str, signature: Signature) -> dict[str, str]:
    """The snippets for a runtime, by file name."""
    is_bytes = signature.io == "uint8"
    planes = 1 if signature.io == "y" else 3
    sides = ("height", "width")
    order = (1, *sides, 3) if is_bytes else (1, planes, *sides)
    fixed = signature.shape(*signature.size) if signature.size else ()
    values = {
        "name": name,
        "file": file,
        "stem": file.rsplit(".", 1)[0],
        "scale": signature.scale,
        "input": describe(signature),
        "output": describe(signature, output=True),
        "buffer": "ByteBuffer" if is_bytes else "FloatBuffer",
        "getter": "byteBuffer" if is_bytes else "floatBuffer",
        "type": ", ai.onnxruntime.OnnxJavaType.UINT8" if is_bytes else "",
        "dtype": "uint8" if is_bytes else "float32",
        "array": "A Uint8Array" if is_bytes else "A Float32Array",
        "ctype": "uint8_t" if is_bytes else "float",
        "ovtype": "u8" if is_bytes else "f32",
        "shape": f"longArrayOf({', '.join(map(str, order))})",
        "shape_js": f"[{', '.join(map(str, order))}]",
        "shape_cpp": f"{{{', '.join(map(str, order))}}}",
        "shape_fixed": f"longArrayOf({', '.join(map(str, fixed))})",
        "ncnn_format": "PIXEL_GRAY" if planes == 1 else "PIXEL_RGB",
        "ncnn_pixels": "the luma plane, a byte each." if planes == 1 else "R G B in turn, a byte each.",
    }
    folder = files(__package__) / "snippets"
    found = [entry for entry in folder.iterdir() if entry.name.rsplit(".", 1)[0] == runtime]
    return {
        f"upscale.{e.name.rsplit('.', 1)[1]}": Template(e.read_text(encoding="utf-8")).substitute(values) for e in found
    }
