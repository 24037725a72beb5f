"""train.py on a host that shares no locks with others: those of its run lie in the folder $LOCKS, which is its own."""

from __future__ import annotations

import os
import runpy
from pathlib import Path

from diffcse_scale.foundation.locks import Lock

own, take = Path(os.environ["LOCKS"]), Lock.take
own.mkdir(exist_ok=True)
Lock.take = lambda path: take(own / path.name)  # type: ignore[method-assign, assignment]
runpy.run_path(str(Path(__file__).parents[3] / "train.py"), run_name="__main__")
