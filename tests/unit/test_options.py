"""Options: every mistake is named, nothing is guessed."""

from __future__ import annotations

import json
import re
import runpy
from typing import Annotated, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from sr_distill.errors import UserError
from sr_distill.losses import LOSSES
from sr_distill.models import ARCHITECTURES
from sr_distill.options import LossOptions, RunOptions, dump_options, load_options, validate
from sr_distill.options.losses import WeightSchedule
from sr_distill.options.optimisation import ScheduleOptions
from sr_distill.options.sections import PairOptions
from sr_distill.options.yaml_1_2 import Loader
from sr_distill.registry import OneOf

from ..conftest import ROOT

SHIPPED = sorted((ROOT / "options").rglob("*.yml"))
MINIMAL = {
    "name": "test",
    "scale": 4,
    "student": {"type": "mobile_sr"},
    "data": {"train": [{"hr": "embedded"}]},
    "losses": [{"type": "l1"}],
    "train": {"total_steps": 10},
}
TINY_CROPS = {"train": [{"hr": "embedded"}], "lr_size": 8}
RECORDED, ON_GPU = {"total_steps": 9, "cuda_graph": True}, {"train": [{"hr": "embedded"}], "device": "cuda"}


def _write(tmp_path, tree, text=None):
    path = tmp_path / "run.yml"
    path.write_text(text if text is not None else yaml.safe_dump(tree))
    return path


def _all_option_classes(cls=RunOptions, seen=None):
    seen = set() if seen is None else seen
    if cls not in seen:
        seen.add(cls)
        for field in cls.model_fields.values():
            for inner in _classes_in(field.annotation, *field.metadata):
                _all_option_classes(inner, seen)
    return seen


def _classes_in(*annotations):
    """Options classes inside annotations; of a registry all entries, and not the base that they have in common."""
    if any(isinstance(annotation, OneOf) for annotation in annotations):
        return [entry for one in annotations if isinstance(one, OneOf) for entry in one.entries.values()]
    found = []
    for annotation in annotations:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            found.append(annotation)
        elif get_origin(annotation) is Annotated:
            found += _classes_in(*get_args(annotation))
        else:
            found += [cls for inner in get_args(annotation) for cls in _classes_in(inner)]
    return found


def test_there_are_shipped_options():
    assert len(SHIPPED) >= 5


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: str(p.relative_to(ROOT)))
def test_shipped_options_load_and_survive_a_round_trip(path, tmp_path):
    options = load_options(path)
    again = load_options(_write(tmp_path, None, dump_options(options)))
    assert again == options
    if path.parent.name == "templates":
        return
    name = re.sub(r"^\d+p?_", "", path.stem).removesuffix("_perceptual")  # those of the zoo have a number in the queue
    assert name.startswith(options.student.type.removesuffix("_tiny"))
    assert name.endswith(f"_x{options.scale}")


def test_scientific_notation_is_a_float(tmp_path):
    text = yaml.safe_dump(MINIMAL) + "optimizer: {learning_rate: 1e-4, weight_decay: 2E-5}\n"
    options = load_options(_write(tmp_path, None, text), ["losses.0.weight=1e-3", "optimizer.clip_grad_norm=1e1"])
    assert options.optimizer.learning_rate == 1e-4
    assert options.optimizer.weight_decay == 2e-5
    assert options.losses[0].weight == 1e-3
    assert options.optimizer.clip_grad_norm == 10.0


def test_all_problems_are_reported_at_once(tmp_path):
    tree = {
        "nme": "x",
        "scale": 5,
        "student": {"type": "mobile_s"},
        "data": {"train": [{"hr": "embedded", "downscal": 2}], "lr_size": "32"},
        "losses": [{"type": "l1", "wieght": 1.0}, {"type": "lpips", "network": "alx"}, {"weight": 1.0}],
        "train": {"total_steps": 0},
    }
    with pytest.raises(UserError) as caught:
        load_options(_write(tmp_path, tree))
    text = str(caught.value)
    assert str(tmp_path) in text
    for expected in (
        "nme: unknown key. Did you mean 'name'?",
        "name: missing.",
        "scale: got 5. Allowed: 2, 3, 4.",
        "student.type: got 'mobile_s'. Did you mean 'mobile_sr'?",
        "data.train.0.downscal: unknown key. Did you mean 'downscale'?",
        "data.lr_size: got '32' (str); expected a valid integer.",
        "losses.0.wieght: unknown key. Did you mean 'weight'?",
        "losses.1.network: got 'alx'. Did you mean 'alex'? Allowed: alex, vgg, squeeze.",
        "losses.2.type: missing. Allowed: ",
        "train.total_steps: got 0; expected greater than or equal to 1.",
    ):
        assert expected in text


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"losses": [{"type": "l1", "against": "teacher"}]}, "there is no teacher"),
        ({"teacher": {"model": "edsr_x4"}}, "no loss uses it"),
        ({"losses": [{"type": "l1"}, {"type": "l1"}]}, "give each a 'name'"),
        ({"losses": [{"type": "l1", "weight": 0.0}]}, "nothing would be learned"),
        ({"losses": [{"type": "l1", "weight": float("nan")}]}, "losses.0.weight"),
        ({"losses": []}, "losses"),
        (
            {"losses": [{"type": "lpips", "network": "squeeze"}], "scale": 2, "data": TINY_CROPS},
            "at least 17x17 pixels, and a crop has 16x16",
        ),
        (
            {"losses": [{"type": "lpips"}], "scale": 3, "data": TINY_CROPS},
            "at least 31x31 pixels, and a crop has 24x24",
        ),
        (
            {"losses": [{"type": "perceptual", "layers": {"pool5": 1.0}}], "scale": 2, "data": TINY_CROPS},
            "at least 32x32",
        ),
        ({"seed": 2**32}, "seed"),
        ({"optimizer": {"type": ["adam"]}}, "optimizer.type"),
        ({"teachers": [{"name": "bicubic", "model": "edsr_x4"}]}, "something else in the log"),
        (
            {
                "peers": [{"type": "fsrcnn"}],
                "losses": [
                    {"type": "l1", "student": "student"},
                    {"type": "charbonnier", "student": "peer_1"},
                    {"type": "mutual", "on": "sr", "against": "peers", "balance": {"after": 4}},
                ],
            },
            "that peer_1 has is of this type",
        ),
        (
            {
                "peers": [{"type": "fsrcnn"}],
                "losses": [
                    {"type": "l1"},
                    {"type": "mse", "student": "student", "name": "peer_1_x"},
                    {"type": "mse", "student": "peer_1", "name": "x"},
                    {"type": "mutual", "on": "sr", "against": "peers"},
                ],
            },
            "several losses are called peer_1_x",
        ),
        ({"name": "../elsewhere"}, "name: a name is made of"),
        ({"schedule": {"type": "multistep"}}, "milestones"),
        ({"schedule": {"type": "multistep", "milestones": [20, 10]}}, "ascending"),
        ({"device": "gpu"}, "device"),
        ({"losses": [{"type": "fitnet"}]}, "there is no teacher"),
        ({"losses": [{"type": "fitnet", "against": "hr"}]}, "losses.0.against: got 'hr'"),
        ({"losses": [{"type": "l1", "on": "features", "against": "hr"}]}, "compared with the teacher's"),
        ({"features": {"pairs": []}}, "at least one pair"),
        ({"features": {"pairs": [{"student": "a"}]}}, "features.pairs.0.teacher: missing"),
        ({"data": {"train": [{"hr": "a", "lr": "b", "downscale": 2}]}}, "downscale needs LR made"),
        ({"student": {"type": "swinir", "depths": [2, 2], "num_heads": [2]}}, "depths has 2 entries"),
        ({"student": {"type": "hit_srf", "depths": [2, 2], "num_heads": [2]}}, "depths has 2 entries"),
        ({"student": {"type": "hit_srf", "embed_dim": 50}}, "is not a multiple of twice every entry of num_heads"),
        ({"student": {"type": "hit_srf", "windows": [4, 8]}}, "windows has 2 entries; give one for every block"),
        ({"student": {"type": "hit_srf", "base_window": 5}}, "above base_window 5 must be multiples of it"),
        ({"train": RECORDED}, "data.device must be cuda, not cpu"),
        ({"train": RECORDED, "data": ON_GPU, "optimizer": {"type": "adam"}}, "steps of soap and muon, not of adam"),
        (
            {"train": RECORDED, "data": ON_GPU, "teacher": {"model": "edsr_x4"}, "losses": [{"type": "fitnet"}]},
            "leave out",
        ),
        ({"train": RECORDED, "data": ON_GPU, "losses": [{"type": "l1", "schedule": {"warmup": 3}}]}, "leave out"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, change, expected):
    with pytest.raises(UserError, match="problem") as caught:
        load_options(_write(tmp_path, MINIMAL | change))
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.total_step=5", "Did you mean 'total_steps'?"),
        ("train.total_steps=ten", "train.total_steps: got 'ten' (str)"),
        ("train.total_steps", "write key.path=value"),
        ("losses.1.weight=2", "a list of 1 is indexed"),
        ("name.first=2", "name is a plain value"),
        ("name=[1", "not valid YAML"),
    ],
)
def test_wrong_overrides_are_named(tmp_path, override, expected):
    with pytest.raises(UserError) as caught:
        load_options(_write(tmp_path, MINIMAL), [override])
    assert expected in str(caught.value)


def test_overrides_reach_lists_and_absent_sections(tmp_path):
    options = load_options(_write(tmp_path, MINIMAL), ["losses.0.weight=0.5", "validation.sets=[Set5]", "name=other"])
    assert (options.losses[0].weight, options.validation.sets, options.name) == (0.5, ["Set5"], "other")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1", "not valid YAML"),
        ("- 1\n", "expected 'key: value' lines"),
        ("a: 1\na: 2\n", "given twice"),
        ("", "expected 'key: value'"),
    ],
)
def test_files_that_are_no_options(tmp_path, text, expected):
    with pytest.raises(UserError) as caught:
        load_options(_write(tmp_path, None, text))
    assert expected in str(caught.value)


def test_a_missing_file_and_a_binary_one(tmp_path):
    with pytest.raises(UserError, match="cannot read the options file"):
        load_options(tmp_path / "none.yml")
    (tmp_path / "binary.yml").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(UserError, match="not a text file"):
        load_options(tmp_path / "binary.yml")


def test_options_never_change_after_loading(tmp_path):
    options = load_options(_write(tmp_path, MINIMAL))
    with pytest.raises(ValidationError):
        options.scale = 2


def test_every_field_has_a_description():
    for cls in _all_option_classes():
        assert cls.__doc__
        for name, field in cls.model_fields.items():
            assert field.description or any(getattr(m, "description", None) for m in field.metadata), (
                f"{cls.__name__}.{name}"
            )


def test_the_walk_finds_every_class():
    classes = _all_option_classes()
    assert {*LOSSES.values(), *ARCHITECTURES.values(), ScheduleOptions, WeightSchedule, PairOptions} <= classes


def test_the_json_schema_and_the_page_are_up_to_date():
    """By their content: how pydantic writes a schema down differs a little between its versions."""
    shipped = json.loads((ROOT / "options/schema.json").read_text())
    now = runpy.run_path(str(ROOT / "scripts/generate_schema.py"))["complete_schema"]()
    page = (ROOT / "docs/options.md").read_text()
    for cls in _all_option_classes():
        there, here = (
            (schema if cls is RunOptions else schema["$defs"][cls.__name__])["properties"] for schema in (shipped, now)
        )
        assert set(there) == set(cls.model_fields), f"run scripts/generate_schema.py ({cls.__name__})"
        assert f"## {cls.__name__}\n" in page
        for name, field in cls.model_fields.items():
            assert f"| `{name}` |" in page
            if field.description:
                assert field.description.replace("|", "\\|") in page, (
                    f"run scripts/generate_schema.py ({cls.__name__}.{name})"
                )
            assert _stated(there[name]) == _stated(here[name]), (
                f"run scripts/generate_schema.py ({cls.__name__}.{name})"
            )


def _stated(node):
    """Limits, choices and defaults in a schema, wherever they stand in it."""
    if isinstance(node, list):
        return [found for item in node for found in _stated(item)]
    if not isinstance(node, dict):
        return []
    keys = (
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "minItems",
        "enum",
        "const",
        "pattern",
        "default",
    )
    own = [(key, node[key]) for key in keys if key in node]
    return own + [found for key, value in node.items() if key not in keys for found in _stated(value)]


@pytest.mark.parametrize("name", LOSSES)
def test_loss_options_round_trip(name):
    options = validate(LossOptions, {"type": name, "weight": 0.25}, "test")
    assert isinstance(options, BaseModel)
    assert validate(LossOptions, options.model_dump(mode="json"), "test") == options
    assert options.label == (f"{name}_features" if options.on == "features" else f"{name}_sr_{options.source}")
    assert options.looks_at("teacher") == (options.on == "features" or name == "contrastive")


def test_words_that_yaml_1_1_takes_for_booleans_are_words(tmp_path):
    """``on`` is a key of every loss: it must not have to be quoted, in a file or in an override."""
    text = (ROOT / "options/photos/plain/mobile_sr_x4.yml").read_text()
    path = tmp_path / "on.yml"
    path.write_text(text.replace("{type: l1, against: hr}", "{type: l1, on: sr}"))
    assert "on: sr" in path.read_text()
    assert load_options(path, ["name=no"]).name == "no"
    options = load_options(path, ["losses=[{type: l1, on: sr}]", "train.compile=False", "train.channels_last=true"])
    assert options.losses[0].on == "sr"
    assert (options.train.compile, options.train.channels_last) == (False, True)


@pytest.mark.parametrize(
    ("text", "value"),
    [("010", 10), ("+7", 7), ("1_000", 1000), ("1e3", 1000), ("0x10", 16), ("0o10", 8), ("1:30", "1:30"), ("2.50", 2.5), (".5", 0.5),
     ("1e-4", 1e-4), (".inf", float("inf")), ("-.INF", float("-inf")), ("1_000.5", 1000.5), ("1.2.3", "1.2.3"), ("2024_", "2024_"),
     ("1__0", "1__0"), ("1٣", "1٣")],
)  # fmt: skip
def test_numbers_are_those_of_yaml_1_2(text, value):
    """PyYAML reads 010 as 8, 1:30 as 90 and 1e-4 as a text; the underscore is Python's."""
    found = yaml.load(text, Loader=Loader)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("name", ["010", "08", "1e3", "1_0", "no", "0x10"])
def test_a_name_that_looks_like_a_number_is_written_as_a_name(tmp_path, name):
    options = validate(RunOptions, {**MINIMAL, "name": name}, "test")
    (tmp_path / "a.yml").write_text(dump_options(options))
    assert load_options(tmp_path / "a.yml") == options
    assert yaml.safe_load(dump_options(options))["name"] == name  # also to other programs
