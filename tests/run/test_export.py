"""Every format in its own runtime, on photographs; and the traps of each that give no error by themselves."""

from __future__ import annotations

import functools
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from sr_distill.cli import main
from sr_distill.data import embedded
from sr_distill.errors import UserError
from sr_distill.evaluate import mean_scores, profile_model
from sr_distill.export import FORMATS, ExportGraph, Signature, in_runtime
from sr_distill.export.lowering import Lowering
from sr_distill.export.photos import calibration_files, inputs
from sr_distill.export.proof import TOLERANCE_DB, UNROUNDED_DB, compare
from sr_distill.export.runtime import signature_for, write
from sr_distill.models import build_model
from sr_distill.zoo import ZOO, open_model

from ..conftest import ROOT, architecture, natural_image, small, write_image

pytestmark = pytest.mark.run

STUDENT = "mobile_sr_tiny_x4"
EVERY = [
    pytest.param(name, precision, io, id=f"{name}-{precision}-{io}")
    for name, kind in FORMATS.items()
    for precision in kind.precisions
    for io in (kind.ios if precision == "fp32" else kind.ios[:1])
]
RUNNING = [name for name, kind in FORMATS.items() if kind.runs_here]


def _installed(name):
    """The format, or a skip that says which package is missing."""
    try:
        FORMATS[name].check_installed()
    except UserError as error:
        pytest.skip(str(error))
    return FORMATS[name]


@functools.cache
def _student():
    return open_model(STUDENT)


def _signature(kind, io="rgb", scale=4, size=(64, 80)):
    return Signature(io, scale, None if kind.dynamic else size)


@pytest.mark.parametrize(("name", "precision", "io"), EVERY)
def test_every_format_does_what_pytorch_does(name, precision, io, tmp_path):
    kind = _installed(name)
    signature, path = _signature(kind, io), tmp_path / f"m{kind.suffix}"
    graph = write(_student(), name, signature, precision, None, path)
    run = kind.open(path, 1)
    if not kind.runs_here:
        return  # opening it has checked its structure
    parity = compare(graph, run, signature)
    assert parity.psnr_db >= TOLERANCE_DB[precision]
    assert precision != "int8" or parity.psnr_db < UNROUNDED_DB
    if kind.dynamic:
        for size in ((31, 47), (64, 48), (9, 130)):
            image = inputs(calibration_files(None)[:1], Signature(io, 4, size))[0]
            with torch.no_grad():
                difference = graph(image).double().numpy() - np.asarray(run(image.numpy())).astype(float)
            peak = 255 if io == "uint8" else 1
            assert -10 * np.log10(np.mean((difference / peak) ** 2) + 1e-15) >= TOLERANCE_DB[precision] - 3


@pytest.mark.parametrize("name", RUNNING)
def test_quality_survives_int8(name):
    """On photographs that it was not calibrated with, as many decibels as the quantisers' own documents lead one to expect."""
    kind = _installed(name)
    if "int8" not in kind.precisions:
        pytest.skip(f"{name} has no int8")
    psnr = {}
    for precision in ("fp32", "int8"):
        there = in_runtime(_student(), name, precision, None if kind.dynamic else (128, 128))
        psnr[precision] = mean_scores(there, [embedded.NAME], ["psnr_y"], None)[embedded.NAME]["psnr_y"]
    assert psnr["fp32"] - 0.25 < psnr["int8"] < psnr["fp32"]


@pytest.mark.parametrize("name", list(FORMATS))
def test_weights_in_int8_take_a_byte(name, tmp_path):
    """A quantiser that rounds the maps alone makes a file that is as near to PyTorch, but neither smaller nor faster."""
    kind = _installed(name)
    model = build_model(architecture(type="mobile_sr", num_feat=96, num_block=3), 2).collapsed().eval()
    if "int8" not in kind.precisions:
        pytest.skip(f"{name} has no int8")
    sizes = {}
    for precision in ("fp32", "int8"):
        folder = tmp_path / precision
        folder.mkdir()
        write(model, name, _signature(kind, scale=2), precision, None, folder / f"m{kind.suffix}")
        sizes[precision] = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert sizes["int8"] < 0.45 * sizes["fp32"]


@pytest.mark.parametrize("name", RUNNING)
@pytest.mark.parametrize("network", ["ecbsr", "rlfn", "edsr"])
def test_other_networks_export_too(name, network, tmp_path):
    kind, model = _installed(name), build_model(small(network), 2).eval()
    signature = signature_for(model, name, "rgb", None if kind.dynamic else (64, 80))
    graph = write(model, name, signature, "fp32", None, tmp_path / f"m{kind.suffix}")
    assert compare(graph, kind.open(tmp_path / f"m{kind.suffix}", 1), signature).psnr_db > 80


def test_a_network_with_windows_exports_for_one_size(tmp_path):
    kind, model = _installed("onnx"), build_model(small("swinir"), 2).eval()
    signature = Signature("rgb", 2, (32, 40))
    graph = write(model, "onnx", signature, "fp32", None, tmp_path / "m.onnx")
    assert compare(graph, kind.open(tmp_path / "m.onnx", 1), signature).psnr_db > 80


def test_repeated_channels_are_what_ncnn_cannot_load(tmp_path, monkeypatch):
    """Its converter takes them without a word: that is why the anchor is lowered to a convolution, and files are always loaded."""
    kind = _installed("ncnn")
    monkeypatch.setattr(type(kind), "lowering", Lowering(anchor="repeat"))
    write(_student(), "ncnn", Signature("y", 4, None), "fp32", None, tmp_path / "m.param")
    with pytest.raises(UserError, match="ncnn cannot load it"):
        kind.open(tmp_path / "m.param", 1)


def test_litert_has_only_operators_that_gpus_of_phones_take(tmp_path):
    kind = _installed("litert")
    from ai_edge_litert.interpreter import Interpreter

    model = build_model(small("mobile_sr", color="y", activation="prelu"), 2).eval()
    write(model, "litert", _signature(kind, "y", 2), "fp32", None, tmp_path / "m.tflite")
    interpreter = Interpreter(str(tmp_path / "m.tflite"))
    assert not {"GREATER", "SELECT", "SELECT_V2", "PRELU"} & {op["op_name"] for op in interpreter._get_ops_details()}
    assert max(len(tensor["shape"]) for tensor in interpreter.get_tensor_details()) <= 4


@pytest.mark.parametrize("name", RUNNING)
def test_the_order_of_memory_does_not_matter(name, tmp_path):
    """ExecuTorch reads memory in the order of NCHW whatever the strides say; photographs come in that of NHWC."""
    kind = _installed(name)
    signature = _signature(kind)
    write(_student(), name, signature, "fp32", None, tmp_path / f"m{kind.suffix}")
    run = kind.open(tmp_path / f"m{kind.suffix}", 1)
    photo = inputs(embedded.held_out_photos()[:1], Signature("rgb", 4, (64, 80)))[0].numpy()
    turned = np.ascontiguousarray(photo.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    assert turned.strides != photo.strides
    np.testing.assert_array_equal(run(turned), run(photo))


def test_int8_leaves_colours_and_the_anchor_in_float(tmp_path):
    onnx = pytest.importorskip("onnx")
    _installed("onnx")
    write(_student(), "onnx", Signature("rgb", 4, None), "int8", None, tmp_path / "m.onnx")
    graph = onnx.load(str(tmp_path / "m.onnx")).graph
    floats = {
        value.name for value in graph.initializer if value.data_type == onnx.TensorProto.FLOAT and len(value.dims) == 4
    }
    assert {name.split(".")[0] for name in floats} == {"color", "net"}
    assert [name for name in floats if name.startswith("net.")] == ["net.anchor.weight"]
    eight = [value for value in graph.initializer if value.data_type == onnx.TensorProto.INT8 and len(value.dims) == 4]
    assert len(eight) == 12
    scales = {value.name: value.dims for value in graph.initializer if value.name.endswith("weight_scale")}
    assert all(list(dims) == [16] for dims in scales.values())  # one for each output channel


@pytest.mark.parametrize("name", RUNNING)
def test_the_commands_compute_in_a_runtime(name, tmp_path, capsys):
    _installed(name)
    write_image(tmp_path / "in/a.png", natural_image(40, 31))
    common = ["-i", str(tmp_path / "in"), "--model", STUDENT]
    assert main(["inference", *common, "-o", str(tmp_path / "here")]) == 0
    assert main(["inference", *common, "-o", str(tmp_path / "there"), "--runtime", name]) == 0
    here, there = (
        torch.from_numpy(np.array(Image.open(tmp_path / f"{place}/a_x4.png"))).int() for place in ("here", "there")
    )
    assert here.shape == there.shape
    inner = (
        np.s_[: 4 * 26, : 4 * 17] if not FORMATS[name].dynamic else np.s_[:]
    )  # a border of another size than the window's
    assert (here - there)[inner].abs().max() <= 1
    capsys.readouterr()
    assert (
        main(
            ["select_student", "--candidates", STUDENT, "--runtime", name, "--runs", "1", "--budget", "parameters=1e5"]
        )
        == 0
    )
    assert STUDENT in capsys.readouterr().out


def test_a_profile_in_another_runtime_counts_the_same_network():
    _installed("onnx")
    here = profile_model(_student(), torch.device("cpu"), runs=1)
    there = profile_model(_student(), torch.device("cpu"), runs=1, runtime="onnx")
    assert (there.parameters, there.macs, there.activations) == (here.parameters, here.macs, here.activations)
    exported = profile_model(in_runtime(_student(), "onnx"), torch.device("cpu"), runs=1)
    assert (exported.parameters, exported.macs) == (here.parameters, here.macs)


@pytest.mark.parametrize("name", ZOO)
def test_the_zoo_exports(name, tmp_path):
    kind, model = _installed("onnx"), open_model(name)
    signature = Signature("uint8", model.spec.scale, None)
    graph = write(model, "onnx", signature, "fp32", None, tmp_path / "m.onnx")
    assert isinstance(graph, ExportGraph)
    assert compare(graph, kind.open(tmp_path / "m.onnx", 2), signature).psnr_db > 70


@pytest.mark.parametrize("precision", FORMATS["onnx"].precisions)
def test_a_file_tells_nothing_of_the_machine_that_made_it(precision, tmp_path):
    _installed("onnx")
    write(_student(), "onnx", Signature("rgb", 4, None), precision, None, tmp_path / "m.onnx")
    content = (tmp_path / "m.onnx").read_bytes()
    assert b'File "' not in content
    assert len(content) < 4 * _student().num_parameters + 40_000


@pytest.mark.parametrize("name", RUNNING)
def test_a_runtime_leaves_signals_as_they_were(name):
    """Two models that end in the order in which they began, and then a signal: what OpenVINO's engines left killed the process."""
    _installed(name)
    code = f"""
import faulthandler, gc, os, signal, time, torch
faulthandler.enable()
from sr_distill.export import in_runtime
from sr_distill.zoo import open_model
heard = []
signal.signal(signal.SIGUSR1, lambda *_: heard.append(1))
first, second = (in_runtime(open_model("{STUDENT}"), "{name}") for _ in range(2))
for model in (first, second):
    model(torch.rand(1, 3, 16, 16))
del model, first
gc.collect()
del second
gc.collect()
os.kill(os.getpid(), signal.SIGUSR1)
time.sleep(0.1)
assert heard == [1]
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
