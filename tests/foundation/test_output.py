"""A program that goes on when nobody reads what it prints."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.launch import environment

PROGRAM = """
import os, subprocess, sys
from pathlib import Path
from diffcse_scale.foundation.output import outlive_readers

outlive_readers()
print("the first line")
sys.stdin.read()  # until the reader has gone
for _ in range(3):
    print("words" * 10_000)
    print("words", file=sys.stderr)
    os.write(1, b"a library's")
    subprocess.run(["echo", "a worker's"], check=True)
Path(sys.argv[1]).write_text("all was done")
"""


@pytest.mark.parametrize("channel", [os.pipe, pty.openpty])
def test_a_pipe_or_a_terminal_that_is_closed_takes_what_it_is_given(
    tmp_path: Path, channel: Callable[[], tuple[int, int]]
) -> None:
    reader, writer = channel()
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "done")]
    program = subprocess.Popen(
        command, env=environment(), stdin=subprocess.PIPE, stdout=writer, stderr=writer, start_new_session=True
    )
    os.close(writer)
    assert os.read(reader, 100).startswith(b"the first line")
    os.close(reader)
    program.communicate()
    assert program.returncode == 0 and (tmp_path / "done").read_text() == "all was done"


def test_a_disk_that_is_full_is_not_taken_for_a_reader_that_has_gone(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(tmp_path / "done")],
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode != 0 and "No space left on device" in done.stderr


STREAMS = """
import os, subprocess, sys
from pathlib import Path
from diffcse_scale.foundation.output import open_closed_streams

open_closed_streams()
with open(sys.argv[1], "w") as done:
    assert sys.stdin.read() == "" and not sys.stdin.isatty() and not sys.stdout.isatty()
    print("words")
    print("words", file=sys.stderr, flush=True)
    subprocess.run(["sh", "-c", "cat; echo a worker's; echo a worker's >&2"], check=True)
    done.write("all was done")
"""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_stream_that_was_closed_from_the_start_is_silent_and_no_file_takes_its_place(
    tmp_path: Path, closed: str
) -> None:
    """The streams are closed by the shell that starts the program, as some schedulers do."""
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", STREAMS, str(tmp_path / "done")]
    done = subprocess.run(command, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert (done.returncode, (tmp_path / "done").read_text()) == (0, "all was done")
