"""Whatever happens in a command: one sentence and its exit code, or a traceback and where to report it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from diffcse_scale.foundation.command_ending import INTERRUPTED, PIPE_CLOSED, refuse_empty, run_command
from diffcse_scale.foundation.errors import InputError
from tests.support.launch import ROOT, environment


@pytest.fixture
def ending(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """What a program ends with whose one command is given: exit code, and what it says on stderr."""

    def run(command: Callable[[], object], *arguments: str) -> tuple[int, str]:
        app = typer.Typer()
        app.command()(lambda: command())
        monkeypatch.setattr(sys, "argv", ["program", *arguments])
        return run_command(app), capsys.readouterr().err

    return run


def _raise(error: BaseException) -> Callable[[], object]:
    def command() -> None:
        raise error

    return command


def _write_to_a_folder() -> None:
    Path("/").write_text("x")


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (lambda: None, 0, ""),
        (_raise(InputError("This is wrong.")), 2, "error: This is wrong.\n"),
        (_raise(KeyboardInterrupt()), INTERRUPTED, "Interrupted.\n"),
        (_raise(MemoryError()), 2, "error: There is not enough memory (MemoryError); give it more, or ask for less"),
        (_raise(OSError(28, "No space left on device", "/a/b")), 2, "error: /a/b: No space left on device; free some"),
        (_raise(RuntimeError("x: No space left on device (os error 28)")), 2, "error: x: No space left on device (os"),
        (
            _raise(PermissionError(13, "Permission denied", "/a/b")),
            2,
            "error: /a/b: Permission denied; see who may read",
        ),
        (_raise(PermissionError(13, "Permission denied", b"/a/\xff")), 2, "error: /a/"),
        (_write_to_a_folder, 2, "error: /: Is a directory; mend that."),
    ],
)
def test_what_is_not_the_programs_fault_is_one_sentence(
    ending: Callable[..., tuple[int, str]], command: Callable[[], object], code: int, said: str
) -> None:
    found, words = ending(command)
    assert found == code and words.startswith(said) and words.count("\n") == bool(said)


def test_an_error_of_the_program_has_a_traceback_and_asks_to_be_reported(
    ending: Callable[..., tuple[int, str]],
) -> None:
    code, words = ending(_raise(ZeroDivisionError("never")))
    assert code == 1 and "Traceback" in words and "ZeroDivisionError: never" in words
    assert "please report it" in words.splitlines()[-1]


@pytest.mark.parametrize("arguments", [["--unknown"], ["too", "many"]])
def test_a_command_line_that_cannot_be_read_is_one_sentence(
    ending: Callable[..., tuple[int, str]], arguments: list[str]
) -> None:
    code, words = ending(lambda: None, *arguments)
    assert code == 2 and words.startswith("error: ") and "--help`." in words and words.count("\n") == 1


def test_an_option_without_a_value_is_not_the_working_directory() -> None:
    for words in (["--output", ""], ["--output="], ["x", "--json", "", "y"]):
        with pytest.raises(InputError, match=r"^--(output|json) is empty"):
            refuse_empty(words)
    refuse_empty(["search", "folder", "", "--top", "3", "evaluation.data=", "--", "--output", ""])


def test_a_reader_that_has_gone_is_no_error() -> None:
    program = "from diffcse_scale.cli import main; import sys; sys.argv[1:] = ['recipe']; main()"
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer) as gone:
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, cwd=ROOT, env=environment(), stdout=gone, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (PIPE_CLOSED, b"")
