"""The same inputs as real processes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fuzz.case import Answer, Case, Surface
from tests.fuzz.contract import SECONDS, kept
from tests.fuzz.drawing import Breach, Tally, draw
from tests.support.files import write_files


def fuzz_processes(surface: Surface, inputs: int, number: int) -> Tally:
    """What becomes of so many inputs, each in a process of its own; what is right is asked in this one."""
    counts, breaches = [0, 0], []

    def ask(case: Case) -> None:
        before = Path.cwd()
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            os.chdir(folder)
            try:
                write_files(Path(), case.files)
                answer = _typed(case)
                problem = "no answer within the time" if answer is None else kept(surface.right, case, answer)
            finally:
                os.chdir(before)
        counts[0] += 1
        counts[1] += answer is not None and answer.code == 0
        if problem:
            breaches.append(Breach(problem, case))

    draw(surface, inputs, number, ask)
    return Tally(*counts, breaches)


def _typed(case: Case) -> Answer | None:
    """What the shell shows; None if there is no answer in time."""
    command = [sys.executable, "-m", "diffcse_scale", *case.arguments]
    own = {"DIFFCSE_CACHE": "cache", "COLUMNS": "200"}
    try:
        done = subprocess.run(
            command, input=case.stdin, capture_output=True, timeout=SECONDS, env={**os.environ, **own}
        )
    except subprocess.TimeoutExpired:
        return None
    return Answer(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))
