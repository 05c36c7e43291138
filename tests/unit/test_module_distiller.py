"""Distillation between any networks."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sr_distill import ModuleDistiller
from sr_distill.callbacks import LoopCallback, fastai_callback, lightning_callback
from sr_distill.errors import UserError
from sr_distill.losses import decoupled, hard_soft, similarity, soft_target


class Classifier(nn.Module):
    """A convolution, a hidden vector, logits."""

    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3, padding=1)
        self.hidden = nn.Sequential(nn.Linear(16 * width, width), nn.ReLU(inplace=True))
        self.head = nn.Linear(width, 5)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        return self.head(self.dropout(self.hidden(self.conv(x).relu().flatten(1))))


def _networks():
    torch.manual_seed(0)
    return Classifier(3).eval(), Classifier(6)


X, Y = torch.rand(8, 1, 4, 4), torch.tensor([0, 1, 2, 3, 4, 0, 1, 2])


def test_outputs_are_compared_with_labels_and_with_the_teacher():
    student, teacher = _networks()
    lines = [
        {"type": "cross_entropy", "weight": 0.3},
        {"type": "soft_target", "temperature": 2.0, "weight": 0.7},
        {"type": "decoupled", "beta": 2.0},
        {"type": "hard_soft", "alpha": 0.4, "kind": "mse"},
        lambda output, labels: (output.argmax(1) != labels).float().mean() + 0 * output.sum(),
    ]
    lines[-1].__name__ = "error"
    distiller = ModuleDistiller(student, teacher, lines)
    total, terms = distiller(X, labels=Y)
    with torch.no_grad():
        s, t = student(X), teacher.eval()(X)
    hard = F.cross_entropy(s, Y)
    expected = {
        "cross_entropy": hard,
        "soft_target": soft_target(s, t, 2.0),
        "decoupled": decoupled(s, t, Y, beta=2.0),
        "hard_soft": hard_soft(hard, s, t, alpha=0.4, kind="mse"),
        "error": (s.argmax(1) != Y).float().mean(),
    }
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value)
    weights = (0.3, 0.7, 1, 1, 1)
    torch.testing.assert_close(total.detach(), sum(w * v for w, v in zip(weights, expected.values())))
    torch.testing.assert_close(distiller.output, s)


def test_layers_are_compared_through_adapters_where_they_differ():
    student, teacher = _networks()
    pairs = {"conv": "conv", "hidden": "hidden"}
    lines = [
        {"type": "fitnet", "pairs": pairs},
        {"type": "similarity", "pairs": [("hidden", "hidden")]},
        {"type": "cosine", "pairs": {"hidden.0": "hidden.0"}, "adapter": "linear"},
    ]
    distiller = ModuleDistiller(student, teacher, lines, example=X)
    assert len(distiller.adapters) == 3  # relations need none
    total, terms = distiller(X)
    total.backward()
    assert all(
        p.grad is not None
        for p in distiller.parameters()
        if p is not student.head.weight and p is not student.head.bias
    )
    assert all(p.grad is None for p in teacher.parameters())
    with torch.no_grad():
        maps = [(net.conv(X), net.hidden(net.conv(X).relu().flatten(1))) for net in (student, teacher)]
        conv, hidden = (distiller.adapters[f"fitnet: {name} - {name}"].layer for name in ("conv", "hidden"))
        fitnet = (F.mse_loss(conv(maps[0][0]), maps[1][0]) + F.mse_loss(hidden(maps[0][1]), maps[1][1])) / 2
    torch.testing.assert_close(terms["fitnet"], fitnet)
    torch.testing.assert_close(terms["similarity"], similarity(maps[0][1], maps[1][1]))


def test_an_ensemble_is_its_weighted_mean_and_each_member_can_have_its_own_term():
    student, a = _networks()
    b = Classifier(4)
    lines = [{"type": "logits"}, {"type": "logits", "teacher": "b", "name": "b_alone"}]
    distiller = ModuleDistiller(student, {"a": a, "b": b}, lines, teacher_weights={"a": 3.0, "b": 1.0})
    _, terms = distiller(X)
    with torch.no_grad():
        s, of_a, of_b = student(X), a.eval()(X), b.eval()(X)
    torch.testing.assert_close(terms["logits"], F.mse_loss(s, 0.75 * of_a + 0.25 * of_b))
    torch.testing.assert_close(terms["b_alone"], F.mse_loss(s, of_b))


def test_the_teacher_is_frozen_in_eval_and_nowhere_to_be_found():
    student, teacher = _networks()
    distiller = ModuleDistiller(student, teacher, [{"type": "soft_target"}]).train().double()
    assert len(list(distiller.parameters())) == len(list(student.parameters()))
    assert set(distiller.state_dict()) == {f"student.{key}" for key in student.state_dict()}
    assert next(teacher.parameters()).dtype == torch.float64
    teacher.train()  # whoever does that: it is put back
    first, again = (distiller.eval()(X.double())[1]["soft_target"] for _ in range(2))
    assert first == again
    assert not teacher.training


def test_a_term_without_weight_runs_no_teacher():
    student, teacher = _networks()
    ran = []
    teacher.register_forward_hook(lambda *_: ran.append(1))
    schedule = {"start": 2, "warmup": 2}
    lines = [{"type": "cross_entropy"}, {"type": "soft_target", "schedule": schedule, "weight": 4.0}]
    distiller = ModuleDistiller(student, teacher, lines)
    weights = [distiller.weights_at(step, 6) for step in range(6)]
    assert [w[1] for w in weights] == [0, 0, 2, 4, 4, 4]
    _, terms = distiller(X, labels=Y, weights=weights[0])
    assert list(terms) == ["cross_entropy"]
    assert not ran
    with pytest.raises(UserError, match="a loss has a schedule"):
        distiller(X, labels=Y)


def test_networks_that_return_something_else_than_a_tensor():
    class Wrapped(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, pixels, scale=1.0):
            return {"logits": self.net(pixels) * scale}

    student, teacher = map(Wrapped, _networks())
    distiller = ModuleDistiller(student, teacher, [{"type": "logits"}], output=lambda result: result["logits"])
    with distiller.watching():
        student(pixels=X, scale=2.0)
    _, terms = distiller.total()
    with torch.no_grad():
        expected = F.mse_loss(*(net(X, scale=2.0)["logits"] for net in (student, teacher)))
    torch.testing.assert_close(terms["logits"], expected)


def test_without_a_teacher_it_is_plain_training():
    student, _ = _networks()
    _, terms = ModuleDistiller(student, None, [{"type": "cross_entropy"}])(X, labels=Y)
    torch.testing.assert_close(terms["cross_entropy"], F.cross_entropy(student(X), Y).detach())


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], "at least one"),
        ([{"type": "soft_targt"}], r"no loss 'soft_targt'.*Did you mean 'soft_target'"),
        ([{"type": "contrastive"}], "no loss 'contrastive' of two tensors"),
        ([{"type": "soft_target", "temprature": 2}], "unknown key 'temprature'.*Did you mean 'temperature'"),
        ([{"type": "soft_target", "weight": -1}], "weight is -1"),
        ([{"type": "soft_target"}, {"type": "soft_target"}], "several losses are called soft_target"),
        ([{"type": "soft_target", "teacher": "b"}], "no teacher 'b'"),
        ([{"type": "cross_entropy"}], "no loss looks at the teacher"),
        ([{"type": "fitnet", "pairs": {"conv": "conv"}, "against": "labels"}], "against is 'labels'"),
        ([{"type": "fitnet", "pairs": {"cnv": "conv"}}], r"the student has no layer 'cnv'\. Near: conv"),
        ([{"type": "fitnet", "pairs": {"conv": "hidden"}}], "no conv1x1 adapter leads from"),
        ([{"type": "fitnet", "adapter": "linear"}], "for terms with pairs"),
        ([{"type": "fitnet", "task": "l1"}], "task is an option of hard_soft"),
        ([{"type": "hard_soft", "task": "l3"}], "task is 'l3'"),
        ([{"function": 3}], "expected something that can be called"),
        ([{"type": "fitnet", "function": soft_target}], "give type"),
        ([{"type": "soft_target", "schedule": {"start": 5, "stop": 2}}], "stop"),
    ],
)
def test_mistakes_are_named(lines, expected):
    student, teacher = _networks()
    with pytest.raises(UserError, match=expected):
        ModuleDistiller(student, teacher, lines, example=X)


def test_more_mistakes_are_named():
    student, teacher = _networks()
    with pytest.raises(UserError, match="need example"):
        ModuleDistiller(student, teacher, [{"type": "fitnet", "pairs": {"conv": "conv"}}])
    with pytest.raises(UserError, match="weights of the student are also the teacher's"):
        ModuleDistiller(student, student, [{"type": "logits"}])
    with pytest.raises(UserError, match="give one weight for each"):
        ModuleDistiller(student, teacher, [{"type": "logits"}], teacher_weights={"a": 1.0})
    distiller = ModuleDistiller(student, teacher, [{"type": "decoupled"}])
    with pytest.raises(UserError, match="run the student first"):
        distiller.total(Y)
    with pytest.raises(UserError, match="decoupled looks at the labels"):
        distiller(X)
    with pytest.raises(UserError, match="must run once, and ran 2 times"), distiller.watching():
        student(X), student(X)
    with pytest.raises(UserError, match=r"loss logits: .*\(8, 4\).*\(8, 5\)"):
        ModuleDistiller(nn.Sequential(student, nn.Linear(5, 4)), teacher, [{"type": "logits"}])(X)
    with pytest.raises(UserError, match="say which: a, b"):
        pairs = {"conv": "conv"}
        ModuleDistiller(student, {"a": teacher, "b": Classifier(2)}, [{"type": "fitnet", "pairs": pairs}], example=X)


def _plain_loop(student, teacher, steps=4):
    """Cross-entropy and a soft target written out."""
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    for _ in range(steps):
        output = student(X)
        loss = F.cross_entropy(output, Y) + 0.5 * soft_target(output, teacher(X).detach(), 3.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return student


LINES = [{"type": "soft_target", "temperature": 3.0, "weight": 0.5}]


def test_a_loop_whose_lines_have_a_schedule_says_how_long_it_is():
    student, teacher = _networks()
    distiller = ModuleDistiller(student, teacher, [{**LINES[0], "schedule": {"warmup": 2}}])
    with pytest.raises(UserError, match="say how many steps the run has"):
        LoopCallback(distiller)
    callback, totals = LoopCallback(distiller, total_steps=3), []
    for _ in range(5):
        with callback:
            student(X)
        totals.append(float(callback.terms().detach() / callback.values["soft_target"].detach()))
    assert totals == pytest.approx([0.25, 0.5, 0.5, 0.5, 0.5])


def test_a_loop_with_the_callback_is_the_loop_written_out():
    student, teacher = _networks()
    expected = _plain_loop(copy.deepcopy(student), teacher.eval())
    callback = LoopCallback(ModuleDistiller(student, teacher, LINES), total_steps=4)
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    for _ in range(4):
        with callback:
            loss = F.cross_entropy(student(X), Y)
        loss = loss + callback.terms()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert callback.step == 4
    assert callback.values["soft_target"] > 0
    for a, b in zip(student.parameters(), expected.parameters()):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("returns", ["a loss", "a mapping"])
def test_lightning_with_the_callback_is_the_loop_written_out(returns, tmp_path):
    pl = pytest.importorskip("lightning.pytorch")
    student, teacher = _networks()
    student.dropout.p = 0.0  # Lightning trains in training mode
    expected = _plain_loop(copy.deepcopy(student), teacher.eval())

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = student

        def training_step(self, batch, index):
            loss = F.cross_entropy(self.net(batch[0]), batch[1])
            return loss if returns == "a loss" else {"loss": loss, "more": 1}

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    lines = [*LINES, {"type": "fitnet", "pairs": {"conv": "conv"}, "weight": 1e-9}]
    distiller = ModuleDistiller(student, teacher, lines, example=X)
    module = Module()
    trainer = pl.Trainer(
        max_epochs=4,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[lightning_callback(distiller)],
        default_root_dir=tmp_path,
    )
    trainer.fit(module, torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=8))
    for a, b in zip(student.parameters(), expected.parameters()):
        torch.testing.assert_close(a, b)
    assert {"distillation/soft_target", "distillation/fitnet"} <= trainer.callback_metrics.keys()
    assert all(p.grad.abs().sum() > 0 for p in distiller.adapters.parameters())
    updated = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert updated >= {id(p) for p in distiller.adapters.parameters()}
    assert "with_terms" not in repr(module.training_step)  # and it is put back


def test_fastai_with_the_callback_is_the_same_loop(tmp_path):
    pytest.importorskip("fastai")
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.optimizer import OptimWrapper

    student, teacher = _networks()
    student.dropout.p = 0.0  # fastai trains in training mode
    lines = [
        {**LINES[0], "schedule": {"warmup": 2, "decay_to": 0.5}},
        {"type": "fitnet", "pairs": {"conv": "conv"}, "weight": 0.1},
        {"type": "decoupled", "weight": 0.1},
    ]
    distiller = ModuleDistiller(student, teacher, lines, example=X)
    expected = copy.deepcopy(distiller)
    callback = LoopCallback(expected, total_steps=4)
    optimizer = torch.optim.SGD(expected.parameters(), 0.1)
    for _ in range(4):
        with callback:
            loss = F.cross_entropy(expected.student(X), Y)
        optimizer.zero_grad()
        (loss + callback.terms(labels=Y)).backward()
        optimizer.step()
    twice = torch.utils.data.TensorDataset(X.repeat(2, 1, 1, 1), Y.repeat(2))
    learner = Learner(
        DataLoaders(*(torch.utils.data.DataLoader(twice, batch_size=8) for _ in range(2))),
        student,
        loss_func=nn.CrossEntropyLoss(),
        opt_func=functools.partial(OptimWrapper, opt=torch.optim.SGD),
        splitter=lambda model: [[*model.parameters(), *distiller.adapters.parameters()]],
        path=tmp_path,
    )
    with learner.no_logging():
        learner.fit(2, lr=0.1, cbs=[fastai_callback(distiller)])
    for (name, a), b in zip(distiller.named_parameters(), expected.parameters()):
        torch.testing.assert_close(a, b, msg=name)
    # Nothing is added to what is measured.
    assert learner.recorder.values[-1][1] == pytest.approx(F.cross_entropy(student(X), Y).item(), rel=1e-5)


def test_lightning_needs_the_student_in_the_module():
    pl = pytest.importorskip("lightning.pytorch")
    student, teacher = _networks()
    callback = lightning_callback(ModuleDistiller(student, teacher, LINES))
    with pytest.raises(UserError, match="no part of this LightningModule"):
        callback.setup(None, pl.LightningModule(), "fit")


def _learner(model, **options):
    """A learner of one batch."""
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner

    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=8)
    return Learner(DataLoaders(loader, loader), model, **({"loss_func": nn.CrossEntropyLoss()} | options))


def test_fastai_needs_the_student_in_the_model_and_adapters_in_the_optimizer():
    pytest.importorskip("fastai")
    student, teacher = _networks()
    with pytest.raises(UserError, match="no part of the learner's model"):
        _learner(copy.deepcopy(student)).fit(1, cbs=[fastai_callback(ModuleDistiller(student, teacher, LINES))])
    lines = [{"type": "fitnet", "pairs": {"conv": "conv"}}]
    with pytest.raises(UserError, match="a splitter"):
        _learner(student).fit(1, cbs=[fastai_callback(ModuleDistiller(student, teacher, lines, example=X))])


def test_fastai_with_a_network_that_returns_a_dictionary():
    pytest.importorskip("fastai")
    student, teacher = _networks()

    class Named(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x):
            return {"logits": self.net(x)}

    student, teacher = Named(student), Named(teacher)
    distiller = ModuleDistiller(student, teacher, LINES, output=lambda result: result["logits"])
    before = copy.deepcopy(student.net.head.weight)
    learner = _learner(student, loss_func=lambda result, labels: F.cross_entropy(result["logits"], labels))
    with learner.no_logging():
        learner.fit(1, lr=0.1, cbs=[fastai_callback(distiller)])
    assert (student.net.head.weight != before).any()


def test_a_lightning_checkpoint_needs_no_distiller_and_goes_on_with_one(tmp_path):
    pl = pytest.importorskip("lightning.pytorch")

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = _networks()[0]
            self.net.dropout.p = 0.0

        def training_step(self, batch, index):
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 0.01)

    def fit(epochs, ckpt_path=None):
        torch.manual_seed(1)
        module = Module()
        lines = [{"type": "fitnet", "pairs": {"conv": "conv"}}]
        distiller = ModuleDistiller(module.net, _networks()[1], lines, example=X)
        trainer = pl.Trainer(
            max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[lightning_callback(distiller)], default_root_dir=tmp_path,
        )  # fmt: skip
        data = torch.utils.data.TensorDataset(X, Y)
        trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=8), ckpt_path=ckpt_path)
        return trainer, distiller

    trainer, _ = fit(2)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    loaded = Module.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=False)
    torch.testing.assert_close(loaded.net.state_dict(), trainer.lightning_module.net.state_dict())
    expected, resumed = fit(5)[1], fit(5, tmp_path / "a.ckpt")[1]
    assert len(expected.adapters) == 1
    torch.testing.assert_close(resumed.state_dict(), expected.state_dict())


def test_a_module_with_the_callback_may_be_a_part_of_another(tmp_path):
    """As in Lightning's weight averaging, which loads its own copy of the module."""
    pl = pytest.importorskip("lightning.pytorch")
    student, teacher = _networks()
    distiller = ModuleDistiller(student, teacher, [{"type": "fitnet", "pairs": {"conv": "conv"}}], example=X)
    module = pl.LightningModule()
    module.net = student
    callback = lightning_callback(distiller, name="first")
    callback.setup(None, module, "fit")
    outer = nn.ModuleDict({"module": module})
    outer.load_state_dict(outer.state_dict())
    assert len(list(outer.parameters())) > len(list(student.parameters()))
    assert not any("adapters" in key for key in outer.state_dict())
    assert callback.state_key != lightning_callback(distiller).state_key
    callback.teardown(None, module, "fit")
    assert not hasattr(module, "first_adapters")


def test_in_half_precision_adapters_stay_in_full():
    student, teacher = _networks()
    lines = [{"type": "fitnet", "pairs": {"conv": "conv"}}, {"type": "soft_target"}]
    distiller = ModuleDistiller(student, teacher, lines, example=X).to(torch.bfloat16)
    distiller(X.bfloat16())[0].backward()
    assert {weight.grad.dtype for weight in distiller.adapters.parameters()} == {torch.float32}
    assert {weight.dtype for weight in student.parameters()} == {torch.bfloat16}


def test_weights_that_student_and_teacher_share_are_not_frozen():
    student, teacher = _networks()
    teacher.head = nn.Sequential(nn.Linear(6, 3), student.head)
    with pytest.raises(UserError, match="weights of the student are also the teacher's, and would be frozen"):
        ModuleDistiller(student, teacher, LINES)
    assert all(weight.requires_grad for weight in student.parameters())
    student.head.requires_grad_(False)  # what nobody trains may be shared
    ModuleDistiller(student, teacher, LINES)
