"""The first thing that a training process does. Must be imported before anything slow."""

from __future__ import annotations

import signal
import sys

from diffcse_scale.foundation import signals
from diffcse_scale.foundation.launched import speaks
from diffcse_scale.foundation.output import open_closed_streams, outlive_readers, quiet_deepspeed
from diffcse_scale.supervision import launchers  # noqa: F401  launchers may die while Python still imports libraries

INTERRUPTED = signals.exit_code_after(signal.SIGINT)


def leave_at_once(words: str) -> None:
    """End the process and its workers; one process per machine first prints a line. Works from any thread."""
    if speaks():
        print(words, file=sys.stderr, flush=True)
    signals.end_at_once(INTERRUPTED)


# `Supervision` replaces this handler once there is something to stop
interrupts = signals.Interrupts(lambda _: leave_at_once("Interrupted before the run began."))


def begin(name: str) -> None:
    """Handle Ctrl-C from now on, survive the end of whatever reads the output, and silence DeepSpeed's start.

    Args:
        name: the caller's `__name__`; nothing happens unless it is the program itself.
    """
    if name != "__main__":
        return
    open_closed_streams()
    quiet_deepspeed()
    outlive_readers()
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda number, frame: None)
    interrupts.__enter__()
