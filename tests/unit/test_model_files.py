"""Files of models: our own, published checkpoints, and what is neither."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from sr_distill.errors import UserError
from sr_distill.models import ARCHITECTURES, STUDENTS, build_model, load_model, model_key, save_model

from ..conftest import architecture, in_colors, small


@pytest.mark.parametrize(("name", "tree"), in_colors(STUDENTS, "rgb", "y"))
def test_a_saved_model_rebuilds_itself(name, tree, tmp_path):
    scale = min(STUDENTS[name].scales, key=lambda scale: abs(scale - 3))  # 3, where it can be
    model = build_model(small(name, **tree), scale).eval()
    save_model(model, tmp_path / "m.safetensors", {"run": "test"})
    again = load_model(tmp_path / "m.safetensors")
    assert again.spec == model.spec
    assert not again.training
    assert model_key(again) == model_key(model)
    image = torch.rand(1, 3, 9, 8)
    with torch.no_grad():
        assert torch.equal(again(image), model(image))


def test_hit_srf_with_other_windows_is_not_taken_for_the_published_one(tmp_path):
    options = architecture(type="hit_srf", embed_dim=16, depths=[2], num_heads=[2], windows=[8, 16])
    model = build_model(options, 2).eval()
    torch.save(model.net.state_dict(), tmp_path / "m.pth")
    with pytest.raises(UserError, match="say which one"):
        load_model(tmp_path / "m.pth")
    assert model_key(load_model(tmp_path / "m.pth", 2, options)) == model_key(model)


def _own_file(tmp_path, **metadata):
    model = build_model(small("mobile_sr"), 4)
    path = tmp_path / "m.safetensors"
    save_model(model, path)
    if metadata:
        good = {"format": "sr_distill 1", "scale": "4", "architecture": model.spec.architecture.model_dump_json()}
        save_file(dict(model.net.state_dict()), str(path), metadata={k: v for k, v in (good | metadata).items() if v})
    return path


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"architecture": "{"}, "metadata is damaged"),
        ({"architecture": ""}, "metadata is damaged"),
        ({"architecture": json.dumps({"type": "mobile"})}, "Did you mean 'mobile_sr'"),
        (
            {"architecture": json.dumps({"type": "mobile_sr", "num_feat": 9, "num_block": 2})},
            "do not fit mobile_sr at scale 4",
        ),
        ({"scale": "2"}, "do not fit mobile_sr at scale 2"),
        ({"scale": "five"}, "metadata is damaged"),
        ({"format": "other"}, "no known network has these weights"),
    ],
)
def test_damaged_model_files_are_named(tmp_path, metadata, expected):
    path = _own_file(tmp_path, **metadata)
    with pytest.raises(UserError, match=r"m\.safetensors") as caught:
        load_model(path)
    assert expected in str(caught.value)


@pytest.mark.parametrize("settings", [{}, {"_use_new_zipfile_serialization": False}])
def test_older_kinds_of_checkpoint_files(tmp_path, settings):
    model = build_model(small("pan"), 4)
    torch.save(model.net.state_dict(), tmp_path / "m.pth", **settings)
    assert model_key(load_model(tmp_path / "m.pth")) == model_key(model.eval())


def test_files_that_are_no_models(tmp_path):
    with pytest.raises(UserError, match="model file not found"):
        load_model(tmp_path / "none.pth")
    for name in ("text.pth", "text.safetensors"):
        (tmp_path / name).write_text("hello")
        with pytest.raises(UserError, match="cannot be read as a model file"):
            load_model(tmp_path / name)
    cut = _own_file(tmp_path)
    cut.write_bytes(cut.read_bytes()[:500])
    with pytest.raises(UserError, match="cannot be read as a model file"):
        load_model(cut)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match="not a dictionary of weights"):
        load_model(tmp_path / "list.pth")


class _Evil:
    def __reduce__(self):
        return print, ("this must never be printed",)


def test_pickles_that_run_code_are_refused(tmp_path, capsys):
    torch.save({"params": _Evil()}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="could run code"):
        load_model(tmp_path / "evil.pth")
    assert "never" not in capsys.readouterr().out


@pytest.mark.parametrize("name", [name for name, entry in ARCHITECTURES.items() if "recognise" in vars(entry)])
@pytest.mark.parametrize("wrap", ["plain", "params", "params_ema", "module"])
def test_published_checkpoints_are_recognised_by_their_content(name, wrap, tmp_path):
    model = build_model(small(name), 4).eval()
    state = {f"module.{k}" if wrap == "module" else k: v for k, v in model.net.state_dict().items()}
    torch.save({wrap: state} if wrap.startswith("params") else state, tmp_path / "m.pth")
    again = load_model(tmp_path / "m.pth")
    assert (again.spec.name, again.spec.scale) == (name, 4)
    image = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(again(image), model(image))
    with pytest.raises(UserError, match="network for scale 4, but scale 2 is asked for"):
        load_model(tmp_path / "m.pth", scale=2)


def test_pan_has_the_same_weights_for_two_scales(tmp_path):
    torch.save(build_model(small("pan"), 3).net.state_dict(), tmp_path / "pan.pth")
    assert load_model(tmp_path / "pan.pth", scale=3).spec.scale == 3
    assert load_model(tmp_path / "pan.pth", scale=2).spec.scale == 2
    with pytest.raises(UserError, match="x2 and x3; say which scale"):
        load_model(tmp_path / "pan.pth")


def test_carn_m_takes_its_upsampler_from_a_file_for_several_scales(tmp_path):
    models = {scale: build_model(small("carn_m"), scale).eval() for scale in (2, 3, 4)}
    common = {key: value for key, value in models[2].net.state_dict().items() if not key.startswith("upsample.")}
    upsamplers = [model.net.upsample.state_dict(prefix="upsample.") for model in models.values()]
    torch.save(common | upsamplers[0] | upsamplers[1] | upsamplers[2], tmp_path / "all.pth")
    image = torch.rand(1, 3, 9, 8)
    for scale, model in models.items():
        model.net.load_state_dict(common, strict=False)
        loaded = load_model(tmp_path / "all.pth", scale=scale)
        assert model_key(loaded) == model_key(model)
        save_model(loaded, tmp_path / "one.safetensors")
        with torch.no_grad():
            assert torch.equal(load_model(tmp_path / "one.safetensors")(image), model(image))
    with pytest.raises(UserError, match="x2 and x3 and x4; say which scale"):
        load_model(tmp_path / "all.pth")
    torch.save(common | upsamplers[2] | {"upsample.up5.body.0.bias": torch.zeros(1)}, tmp_path / "strange.pth")
    with pytest.raises(UserError, match=r"do not fit carn_m at scale 4.*up5"):
        load_model(tmp_path / "strange.pth")


def test_a_published_network_is_not_taken_for_its_relatives(tmp_path):
    """Larger networks of the same authors, which are not built here, share most names with these."""
    for name, extra in (("carn_m", "b1.b2.body.0.weight"), ("bsrn", None)):
        state = dict(build_model(small(name), 4).net.state_dict())
        if extra is None:
            state = {key: value for key, value in state.items() if not key.endswith(".cw")}
        else:
            state[extra] = torch.zeros(1)
        torch.save(state, tmp_path / "m.pth")
        with pytest.raises(UserError, match="no known network has these weights"):
            load_model(tmp_path / "m.pth")


@pytest.mark.parametrize("name", ["msrresnet", "rcan", "rrdbnet", "swinir", "edsr"])
def test_a_checkpoint_with_its_architecture_given(name, tmp_path):
    model = build_model(small(name), 4).eval()
    torch.save({"params": model.net.state_dict()}, tmp_path / "m.pth")
    again = load_model(tmp_path / "m.pth", 4, small(name))
    assert model_key(again) == model_key(model)
    with pytest.raises(UserError, match="say which scale"):
        load_model(tmp_path / "m.pth", None, small(name))
    with pytest.raises(UserError, match=f"do not fit {name} at scale 2"):
        load_model(tmp_path / "m.pth", 2, small(name))


def test_model_key_sees_weights_and_use():
    first, second = build_model(small("mobile_sr"), 2), build_model(small("mobile_sr"), 2)
    assert model_key(first) != model_key(second)
    second.load_state_dict(first.state_dict())
    assert model_key(first) == model_key(second)
