"""Shows the progress of a long command on stderr."""

from __future__ import annotations

import contextlib
import shutil
import sys
import threading
import time
from types import TracebackType
from typing import TextIO

LOOK = 0.5  # seconds between updates of the line on a terminal
FIRST, RAREST = 5.0, 60.0  # seconds to the first line in a log file, and the longest time between two lines
WIDTH = 80  # columns of a log file
STARTING = "starting"  # while libraries are imported


def clock(seconds: float) -> str:
    """A duration in the fewest characters.

    >>> clock(7), clock(754), clock(3723)
    ('0:07', '12:34', '1:02:03')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Working:
    """A context that shows on stderr what is being done inside, its progress, and the elapsed time.

    On a terminal it is one line that is updated and removed at the end; nothing else may be printed meanwhile.
    Elsewhere it prints a line after 5 seconds, doubles the interval each time, and ends at once a minute.

    Args:
        doing: what is done, such as "evaluating".
        unit: the unit that `advance` counts, in the plural.
        total: the total number, if known.
        shown: False prints nothing, as on all ranks except the main one.
        stream: the stream to use instead of stderr.
        first: seconds to the first line if the stream is not a terminal.

    Example:
        with Working("evaluating", "sentences", total=2) as line:
            for sentence in ("a", "b"):
                line.advance()
    """

    def __init__(
        self,
        doing: str,
        unit: str = "",
        total: int | None = None,
        *,
        shown: bool = True,
        stream: TextIO | None = None,
        first: float = FIRST,
    ) -> None:
        self.doing, self._unit, self._total, self._shown, self._first = doing, unit, total, shown, first
        self._stream = sys.stderr if stream is None else stream
        self._done, self._begun, self._ended = 0, time.monotonic(), threading.Event()
        self._thread = threading.Thread(target=self._tell, name="working", daemon=True)

    def __enter__(self) -> Working:
        if self._shown:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        if self._shown:
            self._thread.join()

    def advance(self, count: int = 1) -> None:
        """Add `count` to the number done."""
        self._done += count

    def expect(self, count: int) -> None:
        """Add `count` to the total."""
        self._total = count + (self._total or 0)

    def line(self, width: int) -> str:
        """The current line, in at most `width` characters."""
        of_all = f" of {self._total:,}" if self._total is not None else ""
        done = f"{self._done:,}{of_all} {self._unit}, " if self._unit and (self._done or of_all) else ""
        numbers = f": {done}{clock(time.monotonic() - self._begun)}"
        return self.doing[: width - len(numbers)] + numbers

    def _tell(self) -> None:
        if self._stream.isatty():
            said = ""
            while not self._ended.wait(LOOK):
                line = self.line(shutil.get_terminal_size((WIDTH, 0)).columns - 1)
                self._write(f"\r{line.ljust(len(said))}")
                said = line
            self._write(f"\r{' ' * len(said)}\r")
            return
        pause = self._first
        while not self._ended.wait(pause):
            self._write(f"{self.line(WIDTH)}\n")
            pause = min(2 * pause, RAREST)

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # the reader has gone, or the stream is closed
            self._stream.write(text)
            self._stream.flush()
