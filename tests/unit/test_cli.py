"""How commands end: a sentence for what the user can put right, a traceback for what he cannot."""

from __future__ import annotations

import errno

import pytest
import torch

from sr_distill.cli.common import run_command
from sr_distill.devices import is_out_of_memory
from sr_distill.errors import UserError


def _run(error):
    def main(arguments):
        raise error

    return run_command(main, [])


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
