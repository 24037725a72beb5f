"""A program of ours, with the states of $CRASH_FOLDER recorded in $CRASH_STORE: `recorded.py PROGRAM ARGUMENTS`."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

import safetensors.torch  # noqa: F401  so that what it writes is an event

from tests.crash_points.disk import Disk
from tests.crash_points.promises import PROMISES
from tests.support.file_events import FileEvents

folder = Path(os.environ["CRASH_FOLDER"])
disk = Disk(folder, Path(os.environ["CRASH_STORE"]), PROMISES[os.environ["CRASH_PROMISE"]])
sys.argv = sys.argv[1:]
with FileEvents([folder], disk.before):
    runpy.run_path(sys.argv[0], run_name="__main__")
