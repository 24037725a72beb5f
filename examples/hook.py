"""Train with a hook of your own, which adds the largest gradient norm of the run to its result.

    python examples/hook.py OUTPUT

On the command line, from this file's folder: `deepspeed .../train.py --hook hook:LargestGradient`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from diffcse_scale import DiffCSE
from diffcse_scale.embedded.grammar import training_sentences
from diffcse_scale.training import Hook


class LargestGradient(Hook):
    """Reads every row of metrics.jsonl."""

    def __init__(self) -> None:
        self.largest = 0.0

    def on_row(self, trainer: Any, row: dict[str, Any]) -> None:
        self.largest = max(self.largest, row.get("gradient_norm", 0.0))

    def on_end(self, trainer: Any, result: dict[str, Any]) -> None:
        result["largest_gradient_norm"] = self.largest


if __name__ == "__main__":
    output = Path(sys.argv[1])
    recipe = DiffCSE("quickstart", "max_steps=4", "log_every=1", hooks=[f"{Path(__file__).stem}:LargestGradient"])
    recipe.fit(training_sentences(300, seed=7), output)
    print(f"largest gradient norm: {json.loads((output / 'result.json').read_text())['largest_gradient_norm']:.3f}")
