"""The first thing that a training process does. Imported before anything that takes long."""

from __future__ import annotations

import signal
import sys

from diffcse_scale.foundation import signals
from diffcse_scale.foundation.launched import speaks
from diffcse_scale.foundation.output import outlive_readers, quiet_deepspeed
from diffcse_scale.supervision import launchers  # noqa: F401  they may die while Python still imports libraries

INTERRUPTED = signals.exit_code_after(signal.SIGINT)


def leave_at_once(words: str) -> None:
    """End the process and its workers, after one line from one process of each machine. From any thread."""
    if speaks():
        print(words, file=sys.stderr, flush=True)
    signals.end_at_once(INTERRUPTED)


# `Supervision` has requests of its own once there is something to stop
interrupts = signals.Interrupts(lambda _: leave_at_once("Interrupted before the run began."))


def begin(name: str) -> None:
    """Hear Ctrl-C from now on, go on when nobody reads what is printed, and have DeepSpeed begin without a word.

    Args:
        name: the caller's; only of the program itself anything changes.
    """
    if name != "__main__":
        return
    quiet_deepspeed()
    outlive_readers()
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda number, frame: None)
    interrupts.__enter__()
