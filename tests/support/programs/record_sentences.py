"""train.py that also writes down what it trains on: a line a sentence and step, in `$RECORD/rank<N>.jsonl`."""

from __future__ import annotations

import json
import os
import runpy
from pathlib import Path

from diffcse_scale.distributed import rank
from diffcse_scale.text.batches import Batch
from diffcse_scale.training.trainer import Trainer

train_step = Trainer._train_step


def recorded(self: Trainer, batch: Batch) -> None:
    with (Path(os.environ["RECORD"]) / f"rank{rank()}.jsonl").open("a") as file:
        for chunk in batch.chunks:
            for rows, ids, corrupted, mask in zip(
                chunk.row_ids, chunk.input_ids, chunk.corrupted_ids, chunk.attention_mask, strict=True
            ):
                tokens = [ids[mask.bool()].tolist(), corrupted[mask.bool()].tolist()]
                file.write(json.dumps([batch.step, rows.tolist(), tokens]) + "\n")
    train_step(self, batch)


Trainer._train_step = recorded  # type: ignore[method-assign]
runpy.run_path(str(Path(__file__).parents[3] / "train.py"), run_name="__main__")
