"""train.py that also writes down what it trains on: a line a step, in `$SOAK_RECORD/rank<N>.jsonl`, before it begins.

`$SOAK_PAUSE` makes every step so many seconds longer, and `$FILE_EVENTS` lets a file-system call fail.
"""

from __future__ import annotations

import hashlib
import json
import os
import runpy
import time
from pathlib import Path

from diffcse_scale.supervision import launchers  # noqa: F401  as train.py does

# isort: split
from diffcse_scale.distributed import rank
from diffcse_scale.supervision import supervision
from diffcse_scale.text.batches import Batch
from diffcse_scale.training.trainer import Trainer
from tests.support.file_events import from_environment

train_step = Trainer._train_step


def recorded(self: Trainer, batch: Batch) -> None:
    tokens = hashlib.sha256()
    for chunk in batch.chunks:
        for ids, corrupted, mask in zip(chunk.input_ids, chunk.corrupted_ids, chunk.attention_mask, strict=True):
            tokens.update(json.dumps([ids[mask.bool()].tolist(), corrupted[mask.bool()].tolist()]).encode())
    rows = [row for chunk in batch.chunks for row in chunk.row_ids.tolist()]
    line = {"step": batch.step, "began": time.time(), "rows": rows, "tokens": tokens.hexdigest()}
    with (Path(os.environ["SOAK_RECORD"]) / f"rank{rank()}.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    time.sleep(float(os.environ["SOAK_PAUSE"]))
    train_step(self, batch)


supervision.LOOK = 1e-4  # so short a run exchanges requests at every step
Trainer._train_step = recorded  # type: ignore[method-assign]
if (events := from_environment()) is not None:
    events.__enter__()  # until the process ends
runpy.run_path(str(Path(__file__).parents[2] / "train.py"), run_name="__main__")
