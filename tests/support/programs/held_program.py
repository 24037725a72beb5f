"""train.py that waits at one place, so that a test can do something to it just there.

$HOLD is the place: what it does and after which step (`training:5`, `evaluating:8`, `exporting:8`), or `preparing`, or
what its workers do (`cleaning`, `tokenizing`), of which there are as many as the recipe asks for, however small the
corpus. The main rank, or each worker, makes the file $HELD there, once, and goes on when a test has removed it.
"""

from __future__ import annotations

import os
import runpy
import time
from pathlib import Path
from typing import Any

from diffcse_scale.distributed import is_main
from diffcse_scale.supervision import supervision
from diffcse_scale.text import corpus, tokenizing, tokens
from diffcse_scale.training.trainer import Trainer

place, held = os.environ.get("HOLD", ""), Path(os.environ.get("HELD", "/nonexistent"))
tick, write = Trainer.tick, tokens._write
strip, shortened = corpus._strip, tokenizing.shortened  # which workers call


def hold(here: str) -> None:
    global place
    if here == place:
        place = ""
        held.touch()
        deadline = time.monotonic() + 60
        while held.exists() and time.monotonic() < deadline:
            time.sleep(0.05)


def held_tick(self: Trainer, doing: str) -> None:
    if is_main():
        hold(f"{doing}:{self.step}")
    tick(self, doing)


def held_write(*arguments: Any) -> None:
    hold("preparing")
    write(*arguments)


def held_strip(*arguments: Any) -> Any:
    hold("cleaning")
    return strip(*arguments)


def held_shortened(*arguments: Any) -> Any:
    hold("tokenizing")
    return shortened(*arguments)


supervision.LOOK = 1e-4  # ranks exchange what they know at every step, whatever a test has done while they were held
Trainer.tick = held_tick  # type: ignore[method-assign]
tokens._write = held_write
corpus._strip, tokenizing.shortened = held_strip, held_shortened
for module in (corpus, tokens):
    module.num_proc = lambda workers, rows: workers if workers > 1 else None  # type: ignore[attr-defined]
runpy.run_path(str(Path(__file__).parents[3] / "train.py"), run_name="__main__")
