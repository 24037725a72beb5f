"""What a program prints, also after its reader has gone."""

from __future__ import annotations

import errno
import io
import logging
import os
import shutil
import sys
import textwrap
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


def fitting(line: str) -> str:
    """A line of words, broken where a terminal would break it within one; whole in a file or a pipe."""
    if not sys.stdout.isatty():
        return line
    columns = shutil.get_terminal_size().columns
    return textwrap.fill(line, columns, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)


def quiet_deepspeed() -> None:
    """From now on its import does not say that it found no accelerator: start table, `doctor` and errors do."""
    logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to" not in record.getMessage())


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
