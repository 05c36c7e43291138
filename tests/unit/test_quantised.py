"""Training for int8: the rounding is PyTorch's and ONNX Runtime's, its gradient passes, and exports have its ranges."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from torch import nn
from torch.ao.quantization import FusedMovingAvgObsFakeQuantize, MovingAverageMinMaxObserver, PerChannelMinMaxObserver

from sr_distill import Distiller
from sr_distill.data import embedded
from sr_distill.data.color import luma
from sr_distill.data.middles import shrunk_middle
from sr_distill.errors import UserError
from sr_distill.export import FORMATS, Signature
from sr_distill.export.photos import calibration_files, inputs
from sr_distill.export.runtime import write
from sr_distill.models import (
    ModelSpec,
    SRModel,
    build_model,
    calibrate,
    for_int8,
    load_model,
    quantised,
    ranges,
    save_model,
)
from sr_distill.models.quantised import FakeQuantisedConv2d, Range, rounded
from sr_distill.options import RunOptions, validate
from sr_distill.train import build_run
from sr_distill.zoo import open_model

from ..conftest import small

TREES = [{}, {"color": "y", "activation": "prelu"}, {"reparam": "edge", "activation": "silu", "anchor": "learned"}]


def test_weights_are_rounded_as_by_pytorchs_observer():
    weight = (torch.randn(5, 3, 3, 3) * torch.tensor([1e-3, 0.1, 1.0, 5.0, 0.0]).view(5, 1, 1, 1)).requires_grad_()
    observer = PerChannelMinMaxObserver(
        ch_axis=0, qscheme=torch.per_channel_symmetric, quant_min=-127, quant_max=127, dtype=torch.qint8
    )
    observer(weight.detach())
    scale, zero = observer.calculate_qparams()
    wanted = torch.fake_quantize_per_channel_affine(weight.detach(), scale, zero.int(), 0, -127, 127)
    torch.testing.assert_close(rounded(weight), wanted, atol=1e-6, rtol=1e-5)
    levels = (rounded(weight)[2] / weight[2].detach().abs().max() * 127).detach()
    assert (levels - levels.round()).abs().max() < 1e-3
    rounded(weight).square().sum().backward()
    torch.testing.assert_close(weight.grad, 2 * wanted, atol=1e-6, rtol=1e-5)  # straight through


def test_maps_are_rounded_as_by_pytorchs_module():
    ours = Range(0.1).train()
    theirs = FusedMovingAvgObsFakeQuantize(
        observer=MovingAverageMinMaxObserver, quant_min=0, quant_max=255, averaging_constant=0.1, dtype=torch.quint8
    )
    for index in range(4):
        x = (torch.randn(2, 3, 5, 5) * (index + 1)).requires_grad_()
        y = x.detach().clone().requires_grad_()
        torch.testing.assert_close(ours(x), theirs(y), atol=0, rtol=0)
        ours(x).square().sum().backward()
        theirs(y).square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad, atol=1e-6, rtol=0)
    assert (x.grad == 0).any()  # where it was clipped
    before = (ours.least.clone(), ours.largest.clone())
    out = ours.eval()(torch.randn(1, 3, 4, 4) * 100)
    assert (ours.least, ours.largest) == before
    assert len(out.unique()) <= 48
    assert out.max() <= before[1] + ours.step


@pytest.mark.parametrize("tree", TREES, ids=str)
def test_its_file_has_the_weights_in_floats_and_the_ranges(tree, tmp_path):
    model = build_model(small("mobile_sr", **tree), 2)
    student, image = quantised(model, 0.01), torch.rand(1, 3, 12, 10)
    assert sum(isinstance(module, FakeQuantisedConv2d) for module in student.net.modules()) >= 4
    assert student.num_parameters == model.num_parameters
    with torch.no_grad():
        student.train()(image)
    save_model(student.collapsed(), tmp_path / "m.safetensors")
    loaded = load_model(tmp_path / "m.safetensors")
    assert loaded.is_quantised
    assert loaded.collapsed() is loaded
    assert loaded.spec == loaded.unrounded().spec == model.collapsed().spec
    with torch.no_grad():
        torch.testing.assert_close(loaded(image), student.eval()(image), atol=0, rtol=0)
        torch.testing.assert_close(loaded.unrounded()(image), model.eval()(image), atol=1e-5, rtol=1e-5)
        assert 0 < (loaded(image) - model(image)).abs().max() < 0.2


@pytest.mark.parametrize("tree", TREES, ids=str)
def test_each_map_is_rounded_once_where_it_is_made(tree):
    """A ReLU is computed with its convolution; what goes into the first convolution and the sum of the long skip are made by no other."""
    student = quantised(build_model(small("mobile_sr", **tree), 2), 0.01)
    convs = {name: module for name, module in student.net.named_modules() if isinstance(module, FakeQuantisedConv2d)}
    assert "anchor" not in convs
    relu = tree.get("activation", "relu") == "relu"
    assert {name for name, conv in convs.items() if conv.rectifies} == (set(convs) - {"tail"} if relu else set())
    rounding = {name for name, conv in convs.items() if isinstance(conv.input_range, Range)}
    assert rounding == ({"head.0", "tail"} if relu else set(convs))


def test_ranges_are_those_of_all_images():
    student = quantised(build_model(small("mobile_sr", color="y"), 2), 0.01).train()
    images = [torch.rand(1, 3, 12, 12) * share for share in (0.1, 1.0, 0.3)]
    found = []
    for chosen in (*([image] for image in images), images):
        calibrate(student, chosen)
        found.append([limits for pair in ranges(student.net).values() for limits in pair if limits is not None])
    *alone, together = found
    for each, limits in zip(zip(*alone), together):
        assert limits == pytest.approx((min(one[0] for one in each), max(one[1] for one in each)), abs=limits[1] / 250)
    assert together[0] == pytest.approx((0, max(float(luma(image).max()) for image in images)), abs=1e-6)
    assert student.training
    assert student.net.tail.output_range.momentum == 0.01


def test_every_weight_learns_through_the_rounding():
    student = quantised(build_model(small("mobile_sr"), 2), 0.01).train()
    student(torch.rand(2, 3, 12, 12)).square().mean().backward()
    for name, parameter in student.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("runtime", ["onnx", "openvino", "executorch", "litert"])
def test_its_export_has_the_ranges_that_it_was_trained_with(runtime, tmp_path):
    """Narrow ranges, which no calibration would find, are in the file: its outputs are those of the rounding in training."""
    kind = FORMATS[runtime]
    if any(importlib.util.find_spec(package) is None for package in kind.packages):
        pytest.skip(f"{runtime} is not installed")
    model = open_model("mobile_sr_tiny_x4")
    signature = Signature("y", 4, None if kind.dynamic else (128, 128))
    student = quantised(model, 1.0)
    calibrate(student, [_rgb(path) for path in embedded.training_photos()[:2]])
    for module in [module for module in student.net.modules() if isinstance(module, Range)][1:]:
        module.train()(torch.tensor(module.limits) * 0.5)
    student.eval()
    write(student, runtime, signature, "int8", None, tmp_path / f"m{kind.suffix}")
    run = kind.open(tmp_path / f"m{kind.suffix}", 1)
    for photo in inputs(embedded.held_out_photos(), signature):
        theirs = torch.from_numpy(run(photo.numpy()))
        with torch.no_grad():
            ours, floats = student.net(photo), model.net(photo)
        assert _psnr(ours, theirs) > _psnr(floats, theirs) + 4, (_psnr(ours, theirs), _psnr(floats, theirs))


def test_it_rounds_as_onnx_runtime(tmp_path):
    """Map for map: single values fall to the other level, because biases are rounded there, too, and that grows on its way."""
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    signature = Signature("y", 4, None)
    student = quantised(open_model("mobile_sr_tiny_x4"), 0.01)
    calibrate(student, [_rgb(path) for path in embedded.training_photos()])
    student.eval()
    write(student, "onnx", signature, "int8", None, tmp_path / "m.onnx")
    model = onnx.load(str(tmp_path / "m.onnx"))
    made_by = {node.output[0]: node.op_type for node in model.graph.node}
    maps = [
        node.output[0]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and made_by.get(node.input[0]) == "QuantizeLinear"
    ]
    for name in maps:
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    ours = []
    for module in student.net.modules():
        if isinstance(module, Range):
            module.register_forward_hook(lambda module, args, out: ours.append((out, float(module.step))))
    (photo,) = inputs(embedded.held_out_photos()[:1], signature)
    sr, *theirs = session.run(None, {"image": photo.numpy()})
    with torch.no_grad():
        wanted = student.net(photo)
    assert len(ours) == len(theirs) == 14  # the image, 11 maps, the sum, what the last convolution gives
    for index, ((mine, step), other) in enumerate(zip(ours, theirs)):
        levels = (mine - torch.from_numpy(other)).abs() / step
        assert levels.mean() < (0.003 if index < 2 else 0.6), (index, float(levels.mean()))
    assert _psnr(wanted, torch.from_numpy(sr)) > 52


def test_a_convolution_in_floats_reads_floats(tmp_path):
    """The anchor of an int8 model is that of the image itself: rounded to the steps of the first convolution it would be off by half a level."""
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    write(open_model("mobile_sr_tiny_x2"), "onnx", Signature("y", 2, None), "int8", None, tmp_path / "m.onnx")
    model = onnx.load(str(tmp_path / "m.onnx"))
    (anchor,) = (node for node in model.graph.node if node.op_type == "Conv" and node.input[1] == "net.anchor.weight")
    model.graph.output.append(onnx.helper.make_tensor_value_info(anchor.output[0], onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    image = np.linspace(16 / 255, 235 / 255, 256, dtype=np.float32).reshape(1, 1, 16, 16)
    _, found = session.run(None, {"image": image})
    np.testing.assert_array_equal(found, np.repeat(image, 4, axis=1))


def _rgb(path):
    return shrunk_middle(path, 4)[None].float() / 255


def _psnr(first, second):
    return float(-10 * (first - second).square().mean().log10())


def _options(tmp_path, **change):
    tree = {
        "name": "t",
        "scale": 2,
        "student": small("mobile_sr").model_dump(),
        "init_from": str(tmp_path / "m.safetensors"),
        "quantization": {},
        "data": {"train": [{"hr": "embedded"}]},
        "losses": [{"type": "l1"}],
        "train": {"total_steps": 1},
    }
    return validate(RunOptions, tree | change, "test")


def test_a_run_trains_the_rounding_student(tmp_path):
    model = build_model(small("mobile_sr"), 2)
    save_model(model.collapsed(), tmp_path / "m.safetensors")
    student = build_run(_options(tmp_path)).students["student"]
    assert student.is_quantised
    image = torch.rand(1, 3, 9, 9)
    prepared = for_int8(
        model, inputs(calibration_files(None), Signature("rgb", 2, None))
    )  # it begins as an export does
    torch.testing.assert_close(student.unrounded().eval()(image), prepared(image), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(prepared(image), model.eval()(image), atol=0.05, rtol=0)
    _, largest = ranges(student.net)["head.0"][0]
    assert largest == pytest.approx(1, abs=0.01)  # of photographs


def test_ranges_follow_a_step_and_not_what_a_loss_replays():
    """FCFD runs the student on from the teacher's maps: these are none of its own."""
    teacher, found = build_model(small("edsr"), 2), []
    lr, hr = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 32, 32)
    for loss in ({"type": "fitnet"}, {"type": "fcfd", "direction": "teacher_to_student"}):
        torch.manual_seed(0)
        student = quantised(build_model(small("mobile_sr"), 2), 1.0)
        calibrate(student, [lr])
        Distiller(student, teacher, [{"type": "l1"}, loss]).train()(lr, hr)
        own = [module for module in student.modules() if isinstance(module, Range)]
        found.append([float(value) for each in own for value in (each.least, each.largest)])
    assert found[0] == pytest.approx(found[1])


def test_what_cannot_be_trained_for_int8_is_said(tmp_path):
    save_model(build_model(small("ecbsr"), 2), tmp_path / "m.safetensors")
    with pytest.raises(UserError, match="ecbsr has no file of plain convolutions.*mobile_sr"):
        build_run(_options(tmp_path, student=small("ecbsr").model_dump()))
    with pytest.raises(UserError, match="goes on from a trained student: name its file with init_from"):
        _options(tmp_path, init_from=None)
    with pytest.raises(UserError, match="precision must be fp32, not bf16"):
        _options(tmp_path, train={"total_steps": 1, "precision": "bf16"})
    with pytest.raises(ValueError, match="no file of plain convolutions"):
        quantised(SRModel(nn.PixelShuffle(2), ModelSpec("shuffle", 2)), 0.1)


def test_the_ranges_move_with_the_model_and_into_its_state():
    student = quantised(build_model(small("mobile_sr"), 2), 0.01).train()
    with torch.no_grad():
        student(torch.rand(1, 3, 8, 8))
    other = quantised(build_model(small("mobile_sr"), 2), 0.01)
    other.load_state_dict(student.state_dict())
    image = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        np.testing.assert_array_equal(other.eval()(image), student.eval()(image))
