"""scripts/study.py: its variants can be run, and its tables say what was measured."""

from __future__ import annotations

import importlib
import json
import sys

import pytest

from sr_distill.errors import UserError

from ..conftest import ROOT


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    yield importlib.import_module("study")
    for name in ("study", "quality", "timing"):
        sys.modules.pop(name, None)


def test_the_options_of_every_variant_are_valid_and_differ(study):
    for name in study.STUDIES:
        runs = study.Runs(name)
        options = {
            variant: runs.options_of(variant)[0].model_copy(update={"name": ""}) for variant in runs.study.variants
        }
        assert {runs._base_of(variant) for variant in options} <= set(options)
        assert len({str(each) for each in options.values()}) == len(options)


@pytest.mark.parametrize("part", ["0/0", "2/2", "1", "a/b"])
def test_a_part_that_is_none_is_refused(study, part):
    with pytest.raises(UserError, match="it should be I/N"):
        study.main(["teacher", "run", "--part", part])


def test_a_table_and_a_way_compare_runs_of_the_same_seed(study, monkeypatch, tmp_path, capsys):
    def scores(psnr):
        means = {"psnr": psnr, "ssim": 0.9, "lpips": 0.1}
        return {"seconds": 1.0, "Set5": means, "Set14": means, "on_the_way": {"1000": psnr - 1, "2000": psnr}}

    measured = {
        "tiny_10k_none": {"0": scores(30.0), "1": scores(31.0), "2": scores(40.0)},
        "tiny_10k_l1": {"0": scores(30.5), "1": scores(31.7)},  # the third seed is not there yet
        "base_10k_l1": {"0": scores(30.5)},  # nor is what it is compared with
    }
    measured["tiny_10k_l1"]["1"]["on_the_way"]["1000"] = 30.0
    monkeypatch.setattr(study, "RESULTS", tmp_path)
    (tmp_path / "teacher.json").write_text(json.dumps(measured))
    study.main(["teacher", "table"])
    rows = [line for line in capsys.readouterr().out.splitlines() if "_l1`" in line]
    assert "| `tiny_10k_l1` | 2 | 31.10 ± 0.85 | 31.10 ± 0.85 | +0.600 ± 0.141 | +0.600 ± 0.141 |" in rows[0]
    assert "| `base_10k_l1` | 1 | 30.50 | 30.50 |  |  |" in rows[1]
    study.main(["teacher", "way"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| `tiny_10k_l1`, 2 seeds, after steps | 1,000 | 2,000 |"
    assert lines[2] == "| difference on Set5 | +0.250 ± 0.354 | +0.600 ± 0.141 |"
    assert not any("base" in line for line in lines)
