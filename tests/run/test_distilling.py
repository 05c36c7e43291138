"""Real steps with a teacher: every loss, matched features, stored outputs."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess

import pytest
import torch
import yaml

from sr_distill.data import StepBatches
from sr_distill.errors import UserError
from sr_distill.features import Need
from sr_distill.losses import LOSSES
from sr_distill.models import build_model, load_model
from sr_distill.options import LossOptions, load_options, validate
from sr_distill.train import build_run

from ..conftest import ROOT, architecture
from .helpers import assert_same, last_state, launch, log_of, run_training, torchrun, write_options

pytestmark = pytest.mark.run


FEATURES = [{"type": "l1"}, {"type": "fitnet", "weight": 0.1}, {"type": "attention_transfer", "weight": 10.0}]
REPLAYED = [
    {"type": "l1"},
    {"type": "fcfd", "weight": 0.1},
    {"type": "lpips", "network": "squeeze", "on": "projected", "weight": 0.1},
    {"type": "l1", "on": "decoded"},
]
BETWEEN_SAMPLES = [
    {"type": "l1"},
    {"type": "similarity", "weight": 10.0},
    {"type": "pkt", "pool": 2, "weight": 10.0},
    {"type": "contrastive_representation", "memory": 6, "dimensions": 8, "weight": 0.01},
    {"type": "rkd", "samples": "patches", "max_samples": 8},
    {"type": "lpips", "network": "squeeze", "weight": 0.1},
    {"type": "contrastive", "negatives": 3, "layers": {"relu1_2": 1.0}},
]
BALANCED = [
    {"type": "l1"},
    {"type": "fitnet", "balance": {"ratio": 0.5, "after": 0}},
    {"type": "lpips", "network": "squeeze", "balance": {"against": "l1_sr_hr", "after": 2}},
    {"type": "contrastive_representation", "memory": 6, "dimensions": 8, "weight": 0.01},
]
UNITS = {name: {"normalise": "teacher"} for name in ("balanced",)}
PEERS = [{"type": "compact", "num_feat": 8, "num_block": 1}, {"type": "fsrcnn"}]
MUTUAL = [{"type": "l1"}, {"type": "l1", "against": "peers"}, {"type": "fitnet", "against": "peers", "weight": 0.1}]


def test_the_stored_teacher_equals_the_running_one_inside(work):
    """Stored outputs are of whole images and 8 bits: inside a crop they are the running teacher's, rounded."""
    # The mean over all turns and flips, because crops are turned: a network alone gives another image for a turned one.
    teacher = {"model": str(work / "teacher.safetensors"), "self_ensemble": True}
    options = load_options(write_options(work, teacher=teacher))
    run = build_run(options)
    store = run.open_store(torch.device("cpu"), print, quiet=True)
    batch = StepBatches(store, 32, 8, seed=0)[0]
    running = run.teachers["teacher"](batch.to(torch.device("cpu")).lr, Need(sr=True)).sr
    inside = (slice(None), slice(None), slice(20, -20), slice(20, -20))  # a small EDSR sees 9 LR pixels at x2
    difference = (running * 255 - batch.teacher_sr["teacher"].float()).abs()
    assert difference[inside].max() <= 0.5 + 1e-2
    assert difference.max() > 1  # and at the border the crop does not know what the image goes on with


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_trains(work, name, random_backbones):
    losses = []
    for change in (
        {"against": "hr"},
        {"against": "teacher"},
        *({"on": on} for on in ("features", "decoded", "projected")),
    ):
        with contextlib.suppress(UserError):  # not every loss is for images, nor every one for maps or in every space
            losses.append(validate(LossOptions, {"type": name, **change}, "test"))
    losses = {options.label: options for options in losses}
    assert losses
    data = yaml.safe_load(write_options(work).read_text())["data"] | {"lr_size": 24}
    trees = [options.model_dump(mode="json") for options in losses.values()]
    assert run_training(write_options(work, losses=trees, data=data)) == 0
    lines = log_of(work / "out/run")
    first, *_, last = [line for line in lines if line["kind"] == "train"]
    assert first["total"] == pytest.approx(sum(first[label] for label in losses), rel=1e-4)
    assert all(first[label] > 0 for label in losses)
    assert last["total"] != first["total"]
    start, end = (load_model(work / f"out/run/{n}.safetensors").state_dict() for n in ("initial", "student"))
    moved = {key for key, value in end.items() if not torch.equal(value, start[key])}
    assert "net.head.0.weight" in moved


@pytest.mark.parametrize("objective", ["replayed", "mutual", "balanced"])
def test_what_terms_remember_resumes_exactly(work, objective, random_backbones):
    change = {
        "replayed": {"losses": REPLAYED},
        "mutual": {"losses": MUTUAL, "peers": PEERS, "teacher": None},
        "balanced": {"losses": BALANCED},
    }[objective]
    options = write_options(work, **change, features={"count": 2, **UNITS.get(objective, {})})
    assert run_training(options, "name=whole") == 0
    assert run_training(options, "name=cut", "train.keep_checkpoints=9") == 0
    (work / "out/cut/checkpoints/step_00000006.pt").unlink()
    assert run_training(options, "name=cut", "--resume") == 0
    assert_same(last_state(work, "whole"), last_state(work, "cut"))


def test_weights_that_are_found_are_said_logged_and_kept(work, capsys, random_backbones):
    assert run_training(write_options(work, losses=BALANCED)) == 0
    said, lines = capsys.readouterr().out, [line for line in log_of(work / "out/run") if line["kind"] == "train"]
    for label, step in (("fitnet_features", 0), ("lpips_sr_hr", 2)):
        (found,) = {line[f"weight_{label}"] for line in lines if line["step"] > step}
        assert found > 0
        assert f"step {step}: the weight of {label} is {found:g} from now on" in said
        assert all((label in line) == (line["step"] > step) for line in lines)
    state = last_state(work)["helpers"]
    kept = [value["weight"] for key, value in state.items() if "found" in key]
    assert kept == [lines[-1]["weight_fitnet_features"], lines[-1]["weight_lpips_sr_hr"]]


RECIPES = sorted([*(ROOT / "options").rglob("perceptual/*.yml"), *(ROOT / "options/zoo").glob("*perceptual.yml")])


@pytest.mark.parametrize(
    "recipe", RECIPES, ids=lambda path: f"{path.parent.parent.name}/{path.parent.name}/{path.stem}"
)
def test_perceptual_recipes_train(work, recipe, random_backbones, capsys):
    """As they are, but for what a recipe needs that is not installed: photos and the teacher's weights; every term, on output and maps."""
    scale = yaml.safe_load(recipe.read_text())["scale"]
    instead = [] if "embedded" in recipe.parts else ["data.train=[{hr: embedded}]", "validation.sets=[embedded]"]
    if scale == 2:
        instead += [f"teacher.model={work / 'teacher.safetensors'}", "teacher.check=false", "init_from=null"]
    elif "embedded" not in recipe.parts:
        instead.append("teacher.model=edsr_x4")
    small = ["data.lr_size=16", "data.batch_size=2", "train.total_steps=3", "train.log_every=1", "teacher.cache=false"]
    here = [f"output_dir={work / 'out'}", "name=run", f"data.cache_dir={work / 'cache'}", "validation=null"]
    assert run_training(recipe, *instead, *here, *small) == 0
    said, (line, *_) = capsys.readouterr().out, log_of(work / "out/run")
    terms = {key for key in line if "_sr_" in key or key.endswith(("features", "projected"))}
    labels = {key for key in terms if not key.startswith(("weight_", "share_"))}
    assert {"l1_sr_hr", "l1_sr_teacher"} < labels
    found = {label: line[f"weight_{label}"] for label in labels if not label.startswith("l1")}
    assert {label.rpartition("_")[2] for label in found} >= {"hr", "teacher"}
    assert any(label.endswith(("features", "projected")) for label in found)
    assert all(weight > 0 for weight in found.values())
    assert "looks through" in said or "mobile_sr_tiny_x4" in said
    assert not torch.equal(
        *(next(load_model(work / f"out/run/{n}.safetensors").parameters()) for n in ("initial", "last"))
    )


def test_each_of_several_students_ends_as_its_own_file(work, capsys):
    assert run_training(write_options(work, losses=MUTUAL, peers=PEERS, teacher=None)) == 0
    said = capsys.readouterr().out
    for name, kind in (("student", "mobile_sr"), ("peer_1", "compact"), ("peer_2", "fsrcnn")):
        model = load_model(work / f"out/run/{name}.safetensors")
        assert model.spec.architecture.type == kind
        assert f"{name}.safetensors, best in validation" in said
        first = load_model(
            work / ("out/run/initial.safetensors" if name == "student" else f"out/run/initial_{name}.safetensors")
        )
        assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), first.parameters()))
    lines = log_of(work / "out/run")
    assert {"l1_sr_hr", "peer_1_l1_sr_peers", "peer_2_fitnet_features_peers"} <= lines[0].keys()
    assert {"psnr_y_b2", "peer_1_psnr_y_b2", "peer_2_ssim_y_b2"} <= next(
        x for x in lines if x["kind"] == "validation"
    ).keys()


@pytest.mark.parametrize("cache", [True, False])
def test_several_teachers(work, cache, capsys):
    """The same teacher twice: the mean is the teacher itself, and each has its own terms."""
    model = str(work / "teacher.safetensors")
    teachers = [
        {"name": "a", "model": model, "cache": cache},
        {"name": "b", "model": model, "cache": cache, "weight": 3.0, "features": {"count": 1, "adapter": "conv3x3"}},
    ]
    losses = [
        {"type": "l1", "against": "teacher"},
        {"type": "l1", "against": "teacher", "teacher": "b"},
        {"type": "fitnet", "teacher": "a", "weight": 0.1},
        {"type": "fitnet", "teacher": "b", "weight": 0.1},
    ]
    options = write_options(work, teacher=None, teachers=teachers, losses=losses, features={"count": 2})
    assert run_training(options) == 0
    said = capsys.readouterr().out
    assert said.count("(student from a)") == 2
    assert said.count("(student from b)") == 1
    line = log_of(work / "out/run")[0]
    assert line["l1_sr_teacher"] == pytest.approx(line["l1_sr_teacher_b"], rel=1e-6)
    assert line["fitnet_features_a"] > 0
    helpers = last_state(work)["helpers"]
    assert helpers["adapters.student_from_b.0.conv.weight"].shape[-1] == 3
    assert helpers["adapters.student_from_a.1.conv.weight"].shape[-1] == 1


@pytest.mark.parametrize("cache", [True, False])
def test_feature_distillation_resumes_exactly_and_leaves_a_plain_student(work, cache, capsys):
    teacher = {"model": str(work / "teacher.safetensors"), "cache": cache}
    losses = [*FEATURES, {"type": "l1", "against": "teacher"}]
    options = write_options(work, losses=losses, teacher=teacher, features={"count": 2})
    assert run_training(options, "name=whole") == 0
    assert "compares features of " in capsys.readouterr().out
    assert run_training(options, "name=cut", "train.keep_checkpoints=9") == 0
    (work / "out/cut/checkpoints/step_00000006.pt").unlink()
    assert run_training(options, "name=cut", "--resume") == 0
    assert_same(last_state(work, "whole"), last_state(work, "cut"))
    helpers = last_state(work, "whole")["helpers"]
    assert (
        len([key for key in helpers if key.startswith("adapters.student_from_teacher.")]) == 4
    )  # weight and bias of two
    assert set(load_model(work / "out/whole/student.safetensors").net.state_dict()) == set(
        load_model(work / "out/whole/initial.safetensors").net.state_dict()
    )


@pytest.mark.parametrize("cache", [True, False])
def test_a_self_ensembled_teacher_and_scheduled_weights(work, cache):
    losses = [
        {"type": "l1", "schedule": {"stop": 4}},
        {"type": "l1", "against": "teacher", "weight": 2.0, "schedule": {"start": 2}},
        {"type": "fitnet", "weight": 0.1},
    ]
    teacher = {"model": str(work / "teacher.safetensors"), "self_ensemble": True, "cache": cache}
    assert run_training(write_options(work, losses=losses, teacher=teacher)) == 0
    lines = log_of(work / "out/run")
    train = [line for line in lines if line["kind"] == "train"]
    weights = [(line["step"], line["weight_l1_sr_hr"], line["weight_l1_sr_teacher"]) for line in train]
    assert weights == [(2, 1.0, 0.0), (3, 1.0, 2.0), (4, 1.0, 2.0), (6, 0.0, 2.0)]
    for line, (_, first, second) in zip(train, weights):
        assert ("l1_sr_hr" in line, "l1_sr_teacher" in line) == (first > 0, second > 0)  # without weight: not computed
        total = sum(
            w * line.get(n, 0) for w, n in ((first, "l1_sr_hr"), (second, "l1_sr_teacher"), (0.1, "fitnet_features"))
        )
        assert line["total"] == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("objective", ["features", "replayed", "mutual", "between_samples", "balanced"])
def test_two_processes_train_what_one_would(work, objective, random_backbones_on_disk):
    change = {
        "features": {"losses": FEATURES},
        "replayed": {"losses": REPLAYED},
        "mutual": {"losses": MUTUAL, "peers": PEERS, "teacher": None},
        "between_samples": {"losses": BETWEEN_SAMPLES},
        "balanced": {"losses": BALANCED[:2]},
    }[objective]
    features = {"count": 2, **UNITS.get(objective, {})}
    options = write_options(work, **change, features=features, optimizer={"type": "adam"})
    for processes in (1, 2):
        done = launch(options, processes, f"name=f{processes}", "train.total_steps=1", "train.checkpoint_every=1")
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = ([s["exp_avg"] for s in last_state(work, f"f{n}")["optimizer"]["state"].values()] for n in (1, 2))
    alone = len(list(build_model(architecture(type="mobile_sr", num_feat=8, num_block=1), 2).parameters()))
    assert len(one) >= alone if objective == "between_samples" else len(one) > alone  # which need no adapters
    for first, second in zip(one, two):
        torch.testing.assert_close(first, second, atol=1e-4 * first.abs().max().item(), rtol=1e-3)


def test_a_distiller_of_each_of_two_processes_finds_the_weight_of_one(tmp_path):
    """Each process has half of a batch, and the mean of gradients is that of the whole."""
    script = tmp_path / "balance.py"
    script.write_text("""
import json, os, sys, torch, torch.distributed
sys.path.insert(0, sys.argv[1])
from sr_distill import Distiller
from tests.conftest import architecture
from sr_distill.models import build_model
rank, count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
if count > 1:
    torch.distributed.init_process_group("gloo")
torch.manual_seed(0)
student = build_model(architecture(type="mobile_sr", num_feat=8, num_block=1), 2)
losses = [{"type": "l1"}, {"type": "mse", "balance": {"against": "l1", "ratio": 0.3}}]
batches = [(torch.rand(4, 3, 8, 8), torch.rand(4, 3, 16, 16)) for _ in range(2)]
mine = [tuple(image[rank * 4 // count : (rank + 1) * 4 // count] for image in batch) for batch in batches]
with open(f"{sys.argv[2]}/{count}_{rank}.json", "w") as file:
    json.dump(Distiller(student, None, losses).balance(mine)["mse_sr_hr"], file)
if count > 1:
    torch.distributed.destroy_process_group()
""")
    for processes in (1, 2):
        command, env = (
            [*torchrun(processes, str(script)), str(ROOT), str(tmp_path)],
            os.environ | {"OMP_NUM_THREADS": "1"},
        )
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    alone, *halves = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("1_0", "2_0", "2_1"))
    assert halves[0] == halves[1] == pytest.approx(alone, rel=1e-3)
