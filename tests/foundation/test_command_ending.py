"""Whatever happens in a command: one sentence and its exit code, or a traceback and where to report it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import typer

from diffcse_scale.foundation.command_ending import INTERRUPTED, PIPE_CLOSED, refuse_empty, run_command
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.foundation.signals import REQUESTS
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
        (_raise(MemoryError()), 2, "error: There is not enough memory (MemoryError); give it more, or request less"),
        (
            _raise(OSError(28, "No space left on device", "/a/b")),
            2,
            "error: /a/b: No space left on device; free disk space",
        ),
        (_raise(RuntimeError("x: No space left on device (os error 28)")), 2, "error: x: No space left on device (os"),
        (
            _raise(PermissionError(13, "Permission denied", "/a/b")),
            2,
            "error: /a/b: Permission denied; check its permissions",
        ),
        (_raise(PermissionError(13, "Permission denied", b"/a/\xff")), 2, "error: /a/"),
        (_write_to_a_folder, 2, "error: /: Is a directory; fix that."),
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
    assert "Please report it" in words.splitlines()[-1]


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


BUSY = """
import sys, time, typer
import datasets
from pathlib import Path
from diffcse_scale.foundation.command_ending import run_command

def work(row):
    Path(sys.argv[1], str(row["number"])).touch()
    time.sleep(60)
    return row

app = typer.Typer()

@app.command()
def command(folder: str) -> None:
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict({"number": [0, 1]}).map(work, num_proc=2)

sys.exit(run_command(app))
"""


@pytest.mark.slow
@pytest.mark.parametrize("everybody", [False, True])
@pytest.mark.parametrize("number", REQUESTS)
def test_a_request_while_two_workers_are_busy_is_one_line_and_nothing_is_left(
    tmp_path: Path, number: signal.Signals, everybody: bool
) -> None:
    command = [sys.executable, "-c", BUSY, str(tmp_path)]
    program = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True)
    while len(list(tmp_path.iterdir())) < 2:
        assert program.poll() is None
        time.sleep(0.05)
    workers = psutil.Process(program.pid).children(recursive=True)
    (os.killpg if everybody else os.kill)(program.pid, number)
    _, said = program.communicate(timeout=40)
    words = {signal.SIGINT: "Interrupted.\n"}.get(number, f"Stopped by signal {number.name[3:]}.\n")
    assert (program.returncode, said) == (128 + number, words)
    assert len(workers) >= 2 and not psutil.wait_procs(workers, 5)[1]
