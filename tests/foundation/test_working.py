"""What takes long says so: a line that moves on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import time

from diffcse_scale.foundation.working import Working


def test_a_log_file_gets_lines_at_longer_and_longer_times():
    file = io.StringIO()
    with Working("evaluating", "sentences", total=2000, stream=file, first=0.02) as line:
        line.advance(1500)
        time.sleep(0.5)
    lines = file.getvalue().splitlines()
    # after 0.02, 0.06, 0.14 and 0.3 s, each a little late
    assert 2 <= len(lines) <= 4
    assert all(re.fullmatch(r"evaluating: 1,500 of 2,000 sentences, 0:0\d", line) for line in lines)


def test_what_is_quick_or_another_ranks_says_nothing():
    file = io.StringIO()
    with Working("evaluating", stream=file):
        pass
    with Working("evaluating", stream=file, shown=False, first=0.01):
        time.sleep(0.1)
    assert file.getvalue() == ""


def test_a_terminal_has_one_line_that_moves_and_is_gone_at_the_end():
    reader, writer = pty.openpty()
    said = ""
    with os.fdopen(writer, "w") as terminal, Working("planning " + "x" * 100, stream=terminal):
        while ": 0:01" not in said:
            said += os.read(reader, 10_000).decode()
    with contextlib.suppress(OSError):  # all was read
        while True:
            said += os.read(reader, 10_000).decode()
    os.close(reader)
    _, *moving, spaces, nothing = said.split("\r")
    assert spaces == 79 * " " and nothing == ""
    assert all(re.fullmatch(r"planning x+: 0:0\d", text) and len(text) == 79 for text in moving)
