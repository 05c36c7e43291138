"""The graph that is exported: equal to the model, for every network, input and way of writing operators; windows equal to the whole."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch

from sr_distill.cli import main
from sr_distill.data import rgb_to_ycbcr
from sr_distill.data.color import luma
from sr_distill.errors import UserError
from sr_distill.export import FORMATS, IOS, ExportGraph, Format, Signature, Wish, export_model, formats
from sr_distill.export.lowering import Lowering
from sr_distill.export.photos import calibration_files, inputs
from sr_distill.export.runtime import CARD, RuntimeNet, in_runtime, open_exported, read_card, signature_for
from sr_distill.export.snippet import snippets
from sr_distill.models import STUDENTS, build_model, model_key, save_model
from sr_distill.models.base import ModelSpec, SRModel
from sr_distill.models.receptive_field import receptive_field
from sr_distill.zoo import ZOO, licence_of

from ..conftest import natural_image, small, write_image

LOWERINGS = [
    Lowering(anchor=anchor, shuffle=shuffle, prelu=prelu)
    for anchor, shuffle, prelu in itertools.product(("repeat", "conv"), ("shuffle", "transposed"), ("prelu", "relu"))
]


def _trained(name, scale, **tree):
    """A network whose weights are not those it starts with: all biases and slopes count."""
    model = build_model(small(name, **tree), scale).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


def _aligned(model, side):
    """A size near ``side`` that needs no padding."""
    multiple = model.spec.size_multiple
    return -(-max(side, model.spec.min_size) // multiple) * multiple


@pytest.mark.parametrize(
    ("name", "scale"), [(name, scale) for name, entry in STUDENTS.items() for scale in entry.scales]
)
def test_the_graph_of_every_student_is_the_model(name, scale):
    model = _trained(name, scale)
    image = torch.rand(1, 3, _aligned(model, 12), _aligned(model, 9))
    with torch.no_grad():
        wanted = model(image).clamp(0, 1)
        torch.testing.assert_close(ExportGraph(model, "rgb", Lowering())(image), wanted, atol=1e-5, rtol=0)
        pixels = (image * 255).round().byte()
        exact = model(pixels.float() / 255).clamp(0, 1) * 255
        got = ExportGraph(model, "uint8", Lowering())(pixels.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    assert (got.float() - exact).abs().max() <= 0.501
    if model.spec.color == "y":
        with torch.no_grad():
            got = ExportGraph(model, "y", Lowering())(luma(image))
        inside = (wanted > 0).all(1, keepdim=True) & (wanted < 1).all(1, keepdim=True)  # where RGB was not clipped
        torch.testing.assert_close(got[inside], rgb_to_ycbcr(wanted)[:, :1][inside], atol=1e-5, rtol=0)


@pytest.mark.parametrize("lowering", LOWERINGS, ids=str)
@pytest.mark.parametrize(
    "tree", [{"activation": "prelu"}, {"color": "y", "reparam": "edge"}, {"anchor": "learned"}], ids=str
)
def test_operators_written_otherwise_give_the_same(lowering, tree):
    model, image = _trained("mobile_sr", 3, **tree), torch.rand(1, 3, 11, 14)
    with torch.no_grad():
        torch.testing.assert_close(
            ExportGraph(model, "rgb", lowering)(image), model(image).clamp(0, 1), atol=1e-5, rtol=0
        )


def test_a_network_that_is_one_operator_is_lowered():
    model = SRModel(torch.nn.PixelShuffle(2), ModelSpec("shuffle", 2))
    graph = ExportGraph(model, "rgb", Lowering(shuffle="transposed"))
    image = torch.rand(1, 12, 4, 5)
    torch.testing.assert_close(graph(image), torch.nn.functional.pixel_shuffle(image, 2))
    assert not any(isinstance(module, torch.nn.PixelShuffle) for module in graph.modules())


def test_the_model_itself_stays_as_it_was():
    model = _trained("mobile_sr", 2, activation="prelu")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    ExportGraph(model, "rgb", Lowering(shuffle="transposed", prelu="relu"))
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_luma_alone_is_refused_of_a_network_for_rgb():
    with pytest.raises(UserError, match="takes RGB.*--io rgb or uint8"):
        ExportGraph(_trained("mobile_sr", 2), "y", Lowering())


def _windowed(model, size, io="rgb"):
    """The model in windows, computed by PyTorch."""
    graph = ExportGraph(model, io, Lowering())

    def run(image):
        assert image.shape == Signature(io, model.spec.scale, size).shape(*size)
        with torch.no_grad():
            return graph(torch.from_numpy(image)).numpy()

    return RuntimeNet(run, Signature(io, model.spec.scale, size), receptive_field(model), dict, "")


@pytest.mark.parametrize("shape", [(24, 24), (24, 25), (61, 40), (25, 90)])
@pytest.mark.parametrize("io", ["rgb", "y"])
def test_windows_of_one_size_equal_the_whole_image(shape, io):
    model = _trained("mobile_sr", 2, color="y" if io == "y" else "rgb")
    size = (24, 20)
    net = _windowed(model, size, io)
    image = torch.rand(2, 3, *shape)
    with torch.no_grad():
        whole = model(image)
        there = SRModel(net, ModelSpec("windows", 2, color="y" if io == "y" else "rgb"))(image)
    torch.testing.assert_close(there.clamp(0, 1), whole.clamp(0, 1), atol=1e-5, rtol=0)


def test_an_image_smaller_than_the_window_is_right_away_from_its_border():
    model = _trained("mobile_sr", 2)
    image, radius = torch.rand(1, 3, 17, 15), receptive_field(model)
    with torch.no_grad():
        there, whole = _windowed(model, (24, 20))(image), model(image).clamp(0, 1)
    assert there.shape == whole.shape
    inner = np.s_[..., : 2 * (17 - radius), : 2 * (15 - radius)]
    torch.testing.assert_close(there[inner], whole[inner], atol=1e-5, rtol=0)


def test_windows_of_bytes_have_the_levels_of_the_whole_image():
    model, image = _trained("mobile_sr", 2), torch.rand(1, 3, 30, 40)
    levels = (image * 255).round() / 255
    with torch.no_grad():
        there, whole = _windowed(model, (24, 20), "uint8")(image) * 255, model(levels).clamp(0, 1) * 255
    assert (there - whole).abs().max() <= 0.501


def test_a_network_with_windows_says_which_sizes_it_takes():
    model = build_model(small("swinir"), 2)
    with pytest.raises(UserError, match=r"multiples of 4.*--size HxW"):
        signature_for(model, "onnx", "rgb", None)
    with pytest.raises(UserError, match="--size 30x32: .*multiples of 4"):
        signature_for(model, "onnx", "rgb", (30, 32))
    assert signature_for(model, "onnx", "rgb", (32, 36)).size == (32, 36)


def test_smaller_images_than_a_network_takes_are_padded_as_in_pytorch(exact):
    model, image = _trained("rlfn", 2), torch.rand(1, 3, 9, 20)
    assert model.spec.min_size == 15
    with torch.no_grad():
        torch.testing.assert_close(in_runtime(model, "exact")(image), model(image).clamp(0, 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("io", IOS)
@pytest.mark.parametrize("size", [None, (40, 300)])
def test_photos_are_given_as_the_model_takes_them(io, size):
    signature = Signature(io, 2, size)
    for image in inputs(calibration_files(None)[:2], signature):
        assert image.shape == signature.shape(*(size or (128, 128)))
        assert image.dtype == (torch.uint8 if io == "uint8" else torch.float32)
        assert image.float().std() > (1 if io == "uint8" else 0.01)


def test_photos_for_int8_are_spread_over_a_folder(tmp_path):
    for index in range(70):
        write_image(tmp_path / f"{index:03}.png", natural_image(8, 8))
    files = calibration_files(tmp_path)
    assert 20 <= len(files) <= 32
    assert int(files[-1].stem) > 60
    with pytest.raises(UserError, match="no image to calibrate with"):
        calibration_files(
            tmp_path / ".." / tmp_path.name / "none" if (tmp_path / "none").mkdir() else tmp_path / "none"
        )


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_lines_for_the_app(name):
    kind = FORMATS[name]
    for io, size in itertools.product(kind.ios, [None, (64, 48)] if kind.dynamic else [(64, 48)]):
        found = snippets(name, f"m{kind.suffix}", "my_model", Signature(io, 4, size))
        assert found
        for text in found.values():
            assert "$" not in text.replace("${", "")
            assert f"m{kind.suffix}" in text
            assert {"rgb": "[0, 1]", "y": "[16/255, 235/255]", "uint8": "255"}[io] in text


class _Exact(Format):
    """A format whose files are PyTorch's, for tests of what happens around it; ``error`` is added to its outputs."""

    name, runtime, suffix, packages, error = "exact", "Exact", ".exact", {"torch": "torch"}, 0.0
    precisions, ios = ("fp32", "int8"), ("rgb",)

    def _convert(self, graph, signature, precision, photos, path):
        torch.save(graph, path)

    def _open(self, path, threads):
        graph = torch.load(path, weights_only=False)
        return lambda image: (graph(torch.from_numpy(image)) + self.error).detach().numpy()


@pytest.fixture
def exact(monkeypatch):
    """The format above, registered."""
    kind = _Exact()
    monkeypatch.setitem(FORMATS, "exact", kind)
    monkeypatch.setattr("sr_distill.export.bundle.snippets", lambda *args: {"upscale.txt": "lines"})
    return kind


def _files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_export_leaves_a_folder_that_can_be_opened(exact, tmp_path):
    model = _trained("mobile_sr", 2)
    card = export_model(model, Wish("exact", time_at=(16, 16), licence="CC0"), tmp_path / "out")
    assert card == read_card(tmp_path / "out")
    assert set(_files(tmp_path / "out")) == {"out.exact", "upscale.txt", CARD}
    assert card["bytes"] == {"out.exact": (tmp_path / "out/out.exact").stat().st_size}
    assert card["parity"]["max_difference"] == 0
    assert card["licence_of_weights"] == "CC0"
    assert card["cost"]["parameters"] == model.num_parameters
    assert [row["threads"] for row in card["latency"]["passes"]] == [1, 2]
    (psnr,), (theirs,) = (card["psnr_y"][key].values() for key in ("pytorch", "exact"))
    assert psnr == theirs > 15
    opened, image = open_exported(tmp_path / "out"), torch.rand(1, 3, 10, 13)
    with torch.no_grad():
        torch.testing.assert_close(opened(image), model(image).clamp(0, 1), atol=1e-5, rtol=0)
    assert receptive_field(opened) == receptive_field(model)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("error", "precision", "passes"), [(0.001, "fp32", False), (0.001, "int8", True), (0.05, "int8", False)]
)
def test_what_is_not_near_enough_is_not_written(exact, tmp_path, error, precision, passes):
    exact.error = 0.0 if precision == "fp32" else 0.0005
    wish = Wish("exact", precision, time_at=(16, 16))
    export_model(_trained("mobile_sr", 2), wish, tmp_path / "out")
    before = _files(tmp_path / "out")
    exact.error = error
    if passes:
        assert export_model(_trained("mobile_sr", 2), wish, tmp_path / "out")["parity"]["max_difference"] > 0
    else:
        with pytest.raises(UserError, match=f"dB near to PyTorch's.*{precision} should be at least"):
            export_model(_trained("mobile_sr", 2), wish, tmp_path / "out")
        assert _files(tmp_path / "out") == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_int8_that_rounds_nothing_is_refused(exact, tmp_path):
    with pytest.raises(UserError, match="has left mobile_sr in floats: nothing was written"):
        export_model(_trained("mobile_sr", 2), Wish("exact", "int8"), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_output_that_is_not_finite_or_of_another_shape_is_refused(exact, tmp_path):
    for bad, said in ((lambda sr: sr * np.nan, "not finite"), (lambda sr: sr[..., 1:], "the shape")):
        exact._open = lambda path, threads, bad=bad: (
            lambda image: bad(np.zeros((1, 3, image.shape[2] * 2, image.shape[3] * 2)))
        )
        with pytest.raises(UserError, match=said):
            export_model(_trained("mobile_sr", 2), Wish("exact"), tmp_path / "out")
        assert not list(tmp_path.iterdir())


def test_a_folder_of_somebody_else_is_left_alone(exact, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="has no card.json, so it was not made by this: remove it"):
        export_model(_trained("mobile_sr", 2), Wish("exact"), tmp_path / "out")
    assert (tmp_path / "out/thesis.txt").read_text() == "years of work"


def test_a_missing_package_is_named_with_its_command(exact, monkeypatch, tmp_path):
    monkeypatch.setattr(type(exact), "packages", {"no_such_module": "no-such-package"})
    with pytest.raises(
        UserError, match=r"Exact needs no-such-package: pip install no-such-package \(or, .*requirements-export"
    ):
        export_model(_trained("mobile_sr", 2), Wish("exact"), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_converters_own_exception_becomes_a_sentence(exact, monkeypatch, tmp_path):
    def fail(*args):
        print("pages of passes")
        raise KeyError("aten::exotic")

    monkeypatch.setattr(exact, "_convert", fail)
    with pytest.raises(UserError, match=r"Exact does not take mobile_sr \(KeyError: 'aten::exotic'\)"):
        export_model(_trained("mobile_sr", 2), Wish("exact"), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_a_format_has_not_is_said(exact, tmp_path):
    for wish, said in (
        (Wish("exact", "fp16"), "has no fp16; it has fp32, int8"),
        (Wish("exact", io="y"), "has no --io y; it has rgb"),
    ):
        with pytest.raises(UserError, match=said):
            export_model(_trained("mobile_sr", 2), wish, tmp_path / "out")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / CARD).write_text("{"), "damaged"),
        (lambda folder: (folder / CARD).write_text("[]"), "damaged"),
        (lambda folder: (folder / CARD).unlink(), "lies in a folder with its card.json"),
        (lambda folder: (folder / "out.exact").unlink(), "is missing; export it again"),
        (lambda folder: (folder / "out.exact").write_bytes(b"no"), "Exact cannot open it"),
        (lambda folder: (folder / CARD).write_text(json.dumps({"format": "xyz"})), "'xyz' is not one of"),
    ],
)
def test_a_damaged_export_is_named(exact, tmp_path, damage, said):
    export_model(_trained("mobile_sr", 2), Wish("exact", time_at=(16, 16)), tmp_path / "out")
    damage(tmp_path / "out")
    with pytest.raises(UserError, match=said):
        open_exported(tmp_path / "out")


def test_the_commands_take_exported_models(exact, tmp_path, capsys):
    def upscale(model, out, *more):
        return main(["inference", "-i", str(tmp_path / "in"), "-o", str(tmp_path / out), "--model", str(model), *more])

    file = tmp_path / "m.safetensors"
    save_model(_trained("mobile_sr", 2), file)
    arguments = ["--model", str(file), "--format", "exact", "--time-at", "16x16", "-o", str(tmp_path / "out")]
    assert main(["export", *arguments]) == 0
    said = capsys.readouterr().out
    folder = tmp_path / "out/m_exact_fp32"
    assert f"written: {folder}" in said
    assert "equal" in said
    write_image(tmp_path / "in/a.png", natural_image(21, 33))
    for index, model in enumerate((folder, folder / "m_exact_fp32.exact", file)):
        assert upscale(model, f"sr{index}") == 0
    made = {(tmp_path / f"sr{index}/a_x2.png").read_bytes() for index in range(3)}
    assert len(made) == 1
    capsys.readouterr()
    assert upscale(folder, "sr", "--runtime", "onnx") == 2
    assert "was exported for exact, and --runtime is onnx" in capsys.readouterr().err
    assert upscale(folder, "sr", "--scale", "4") == 0
    assert "x4 is made by x2, then x2" in capsys.readouterr().err
    sets = ["--datasets", str(tmp_path / "in"), "--scale", "2", "--lpips", "none"]
    assert main(["evaluate", "--model", str(folder), *sets]) == 0
    assert "m_exact_fp32" in capsys.readouterr().out
    assert main(["profile_model", "--model", str(folder), "--runs", "1", "--runtime", "torchscript"]) == 2
    assert "runs in its own runtime: leave out --runtime torchscript" in capsys.readouterr().err
    assert main(["profile_model", "--model", str(folder), "--runs", "1"]) == 0
    said = capsys.readouterr().out
    assert f"{build_model(small('mobile_sr'), 2).num_parameters / 1e3:,.1f} K" in said
    assert "ms (cpu, exact fp32)" in said
    assert upscale(folder, "sr", "--precision", "bf16") == 2
    assert "runs in exact fp32, whose precision is that of its export" in capsys.readouterr().err
    assert main(["features", "--model", str(folder)]) == 2
    assert "runs in exact, as one piece" in capsys.readouterr().err


def test_models_in_a_runtime_are_known_by_their_weights(exact, tmp_path):
    """By it a film knows whether its segments are another network's."""
    first, second = _trained("mobile_sr", 2), _trained("mobile_sr", 2)
    with torch.no_grad():
        next(second.parameters()).add_(1)
    keys = [model_key(in_runtime(model, "exact")) for model in (first, second, first)]
    for index, model in enumerate((first, second)):
        export_model(model.renamed("m"), Wish("exact", time_at=(16, 16)), tmp_path / f"{index}/m")
        keys.append(model_key(open_exported(tmp_path / f"{index}/m")))
    assert keys[0] == keys[2]
    assert len({*keys, model_key(first)}) == 5


@pytest.mark.parametrize("given", ["{}", "{}/student.safetensors"])
def test_a_run_is_exported_below_the_folder_that_was_asked_for(exact, tmp_path, given):
    run = tmp_path / "experiments/my_run"
    save_model(_trained("mobile_sr", 2), run / "student.safetensors")
    (run / "options.yml").write_text("")
    arguments = ["--model", given.format(run), "--format", "exact", "--time-at", "16x16", "-o", str(tmp_path / "out")]
    assert main(["export", *arguments]) == 0
    assert (tmp_path / "out/my_run_exact_fp32").is_dir()


def test_one_format_that_fails_leaves_the_others(exact, monkeypatch, tmp_path, capsys):
    save_model(_trained("mobile_sr", 2), tmp_path / "m.safetensors")
    other = type("_Other", (_Exact,), {"name": "other", "runtime": "Other", "packages": {"no_such_module": "x"}})()
    monkeypatch.setitem(formats.FORMATS, "other", other)
    arguments = [
        "export",
        "--model",
        str(tmp_path / "m.safetensors"),
        "--time-at",
        "16x16",
        "-o",
        str(tmp_path / "out"),
        "--format",
    ]
    assert main([*arguments, "other", "exact"]) == 1
    assert "Other needs x" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["m_exact_fp32"]
    assert main([*arguments, "other"]) == 2
    for bad in ("0x5", "5", "5x", "axb"):
        with pytest.raises(SystemExit):
            main([*arguments, "exact", "--size", bad])
        assert "is not HEIGHTxWIDTH" in capsys.readouterr().err


@pytest.mark.parametrize("name", ZOO)
def test_the_card_of_the_zoo_tells_the_licence(name):
    assert licence_of(name).startswith("Licence of the teacher's weights: ")
    assert licence_of("nothing.safetensors") is None
