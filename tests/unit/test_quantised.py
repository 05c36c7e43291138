"""Training for int8: the rounding is PyTorch's and ONNX Runtime's, its gradient passes, and its file is a plain network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.ao.quantization import FusedMovingAvgObsFakeQuantize, MovingAverageMinMaxObserver, PerChannelMinMaxObserver

from sr_distill.data import embedded
from sr_distill.errors import UserError
from sr_distill.export import FORMATS, Signature
from sr_distill.export.photos import inputs
from sr_distill.export.runtime import write
from sr_distill.models import ModelSpec, SRModel, build_model, load_model, quantised, save_model
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
def test_its_file_is_the_plain_network(tree, tmp_path):
    model = build_model(small("mobile_sr", **tree), 2)
    student, image = quantised(model, 0.01), torch.rand(1, 3, 12, 10)
    assert sum(isinstance(module, FakeQuantisedConv2d) for module in student.net.modules()) >= 4
    assert student.num_parameters == model.num_parameters
    save_model(student.collapsed(), tmp_path / "m.safetensors")
    loaded = load_model(tmp_path / "m.safetensors")
    assert loaded.spec == model.collapsed().spec
    with torch.no_grad():
        torch.testing.assert_close(loaded(image), model.eval()(image), atol=1e-5, rtol=1e-5)
        student.train()(image)
        difference = (student.eval()(image) - loaded(image)).abs()
    assert 0 < difference.max() < 0.2


@pytest.mark.parametrize("tree", TREES, ids=str)
def test_outputs_are_rounded_where_no_activation_follows(tree):
    student = quantised(build_model(small("mobile_sr", **tree), 2), 0.01)
    rounds = {
        name for name, module in student.net.named_modules() if isinstance(getattr(module, "output_range", None), Range)
    }
    assert rounds == {"tail"}


def test_every_weight_learns_through_the_rounding():
    student = quantised(build_model(small("mobile_sr"), 2), 0.01).train()
    student(torch.rand(2, 3, 12, 12)).square().mean().backward()
    for name, parameter in student.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


def test_it_rounds_as_onnx_runtime(tmp_path):
    """With the ranges of an exported model, the rounding in training gives what ONNX Runtime computes, but for what it rounds more."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    model, signature, kind = open_model("mobile_sr_tiny_x4"), Signature("y", 4, None), FORMATS["onnx"]
    write(model, "onnx", signature, "int8", None, tmp_path / "m.onnx")
    graph = onnx.load(str(tmp_path / "m.onnx")).graph
    values = {value.name: onnx.numpy_helper.to_array(value) for value in graph.initializer}
    steps = [node.input for node in graph.node if node.op_type == "QuantizeLinear"]
    steps = [
        inputs for inputs in steps if inputs[0] != "relu_10"
    ]  # the sum with the first map is made of rounded maps there
    student = quantised(model, 0.01).eval()
    ranges = [module for module in student.net.modules() if isinstance(module, Range)]
    assert len(ranges) == len(steps) == 13
    for module, (_, step, zero) in zip(ranges, steps):
        module.least.fill_(float(values[step]) * (0 - int(values[zero])))
        module.largest.fill_(float(values[step]) * (255 - int(values[zero])))
    run = kind.open(tmp_path / "m.onnx", 1)
    for photo in inputs(embedded.held_out_photos(), signature):
        theirs = torch.from_numpy(run(photo.numpy()))
        with torch.no_grad():
            ours, floats = student.net(photo), model.net(photo)
        assert (
            _psnr(ours, theirs) > _psnr(floats, theirs) + 1
        )  # single levels that fall to the other side grow on their way


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
    torch.testing.assert_close(student.collapsed().eval()(image), model.eval()(image), atol=1e-5, rtol=1e-5)


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
