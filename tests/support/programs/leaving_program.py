"""train.py that says as Python ends whether it has left its process group."""

from __future__ import annotations

import atexit
import runpy
from pathlib import Path

import torch.distributed

atexit.register(lambda: print("group left:", not torch.distributed.is_initialized()))
runpy.run_path(str(Path(__file__).parents[3] / "train.py"), run_name="__main__")
