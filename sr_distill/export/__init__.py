"""Students in the form and the files that other runtimes take."""

from . import coreml as coreml  # these fill FORMATS
from . import executorch as executorch
from . import litert as litert
from . import ncnn as ncnn
from . import onnx as onnx
from . import openvino as openvino
from .bundle import Wish, export_model
from .formats import FORMATS, PRECISIONS, Format, register_format
from .graph import IOS, ExportGraph, Signature
from .opening import open_for, open_in
from .proof import RUNS
from .runtime import in_runtime, is_exported, open_exported, read_card

__all__ = [
    "FORMATS",
    "IOS",
    "PRECISIONS",
    "RUNS",
    "ExportGraph",
    "Format",
    "Signature",
    "Wish",
    "export_model",
    "in_runtime",
    "is_exported",
    "open_exported",
    "open_for",
    "open_in",
    "read_card",
    "register_format",
]
