"""train.py whose file-system calls are counted, and one of which fails or is its last, as $FILE_EVENTS says."""

from __future__ import annotations

import runpy
from pathlib import Path

import safetensors.torch  # noqa: F401  so that what it writes is counted

from tests.support.file_events import from_environment

events = from_environment()
if events is not None:
    events.__enter__()  # until the process ends
runpy.run_path(str(Path(__file__).parents[3] / "train.py"), run_name="__main__")
