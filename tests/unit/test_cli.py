"""How commands end: a sentence for what the user can put right, a traceback for what he cannot."""

from __future__ import annotations

import errno
import io
import sys

import pytest
import torch

from sr_distill.cli import main
from sr_distill.cli.common import run_command
from sr_distill.devices import is_out_of_memory
from sr_distill.errors import UserError


def _run(error):
    def main(arguments):
        raise error

    return run_command(main, [])


def test_a_name_that_is_no_text_can_be_said(monkeypatch):
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="utf-8", write_through=True))
    assert run_command(lambda arguments: print("b\udcff.png") or 0, []) == 0
    assert shown.getvalue() == b"b\\udcff.png\n"


@pytest.mark.parametrize(
    ("command", "arguments", "said"),
    [
        ("inference", ["-i", "a.png", "-o", "out", "--suffix", "/x"], "no part of a file's name"),
        ("inference", ["-i", "a.png", "-o", "out", "--threads", "0"], "is not at least 1"),
        ("inference", ["-i", "a.png", "-o", "out", "--runtime", "onnx", "--precision", "bf16"], "computes in fp32"),
        (
            "export",
            ["--model", "edsr_x4", "--format", "onnx", "-o", "out", "--time-at", "dynamic"],
            "timed at one size",
        ),
        ("web_demo", ["-o", "page", "--serve", "99999"], "no port"),
        ("select_student", ["--candidates", "edsr_x4", "--budget", "latency_ms=inf"], "a number above 0"),
        ("select_student", ["--candidates", "m", "--budget", "macs=1", "macs=2"], "each cost has one limit"),
        (
            "export",
            ["--model", "edsr_x4", "--format", "onnx", "-o", "out", "--calibration", "photos"],
            "--calibration is for --precision int8",
        ),
        (
            "evaluate",
            ["--datasets", "embedded", "--scale", "4", "--metrics", "psnr_y", "--lpips", "alex"],
            "name lpips_alex there",
        ),
        (
            "evaluate",
            ["--datasets", "embedded", "--scale", "4", "--metrics", "psnr_y", "--lpips", "none"],
            "leave out --lpips none",
        ),
    ],
)
def test_values_that_cannot_be_are_refused(command, arguments, said, capsys):
    try:
        code = main([command, *arguments])
    except SystemExit as error:
        code = error.code
    assert code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (UserError("x.yml: put it right."), "error: x.yml: put it right."),
        (OSError(errno.ENOSPC, "No space left on device", "out/x.png"), "error: out/x.png: No space left on device."),
        (ConnectionRefusedError("refused"), "error: refused."),
        (MemoryError(), "error: not enough memory (MemoryError): try smaller"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried"),
            "error: not enough memory (CUDA out of memory. Tried): try",
        ),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "error: not enough memory (Default"),
        (RuntimeError("MPS backend out of memory"), "error: not enough memory (MPS"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), "error: not enough memory (CUDA"),
    ],
)
def test_what_a_user_did_is_one_line(error, said, capsys):
    assert _run(error) == 2
    err = capsys.readouterr().err
    assert err.startswith(said)
    assert err.count("\n") == 1


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("bad"), KeyError("k"), AssertionError()])
def test_an_error_of_the_program_has_its_traceback(error, capsys):
    assert _run(error) == 3
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert "raise error" in err
    assert type(error).__name__ in err
    assert "please report it" in err.splitlines()[-1]


def test_an_interruption_is_no_error(capsys):
    assert _run(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "interrupted.\n"


def test_what_a_command_returns_is_its_exit_code():
    assert [run_command(lambda arguments, code=code: code) for code in (0, 1)] == [0, 1]


def test_memory_that_is_really_not_there_is_known():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("shapes differ"))
