"""What a program prints, while somebody reads it and afterwards."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any

# what a pipe says that nobody reads from, and a terminal that was closed
NOBODY_READS = (errno.EPIPE, errno.EIO)


class _Outliving(io.FileIO):
    """A descriptor of this process; when its reader has gone, what is written there is dropped."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in NOBODY_READS:
                raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())  # also for what libraries and workers write
        os.close(nowhere)
        return len(memoryview(data).cast("B"))


def outlive_readers() -> None:
    """From now on this process does not end because nobody reads what it prints, as after `| head`."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, io.TextIOWrapper):
            continue  # closed, or a program's own
        try:
            descriptor = stream.fileno()
        except io.UnsupportedOperation:
            continue  # in memory
        stream.flush()
        lasting = io.BufferedWriter(_Outliving(descriptor, "w", closefd=False))
        setattr(sys, name, io.TextIOWrapper(lasting, stream.encoding, stream.errors, line_buffering=True))
