"""Printing that continues to work after the reader has gone."""

from __future__ import annotations

import errno
import io
import logging
import os
import shutil
import sys
import textwrap
from typing import Any

# errors of a pipe without a reader and of a closed terminal
NOBODY_READS = (errno.EPIPE, errno.EIO)


class _Outliving(io.FileIO):
    """A descriptor of this process. After its reader has gone, output is dropped."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in NOBODY_READS:
                raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())  # also drops the output of libraries and workers
        os.close(nowhere)
        return len(memoryview(data).cast("B"))


def open_closed_streams() -> None:
    """Connect a standard stream that the parent process closed (`>&-`, some schedulers) to /dev/null.

    Otherwise `sys.stdout` is None, and the next file that is opened receives what libraries and workers print.
    """
    for descriptor, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(descriptor)
        except OSError:
            # opening takes the smallest free number, which is this one
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            stream = open(descriptor, mode, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)


def fitting(line: str) -> str:
    """On a terminal, wrap a line between words; in a file or pipe, leave it whole."""
    if not sys.stdout.isatty():
        return line
    columns = shutil.get_terminal_size().columns
    return textwrap.fill(line, columns, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)


def quiet_deepspeed() -> None:
    """Silence DeepSpeed's message about the accelerator: the start table, `doctor` and errors report it."""
    logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to" not in record.getMessage())


def outlive_readers() -> None:
    """From now on, a reader that goes away (such as `| head`) does not end this process."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, io.TextIOWrapper):
            continue  # closed, or replaced by a program
        try:
            descriptor = stream.fileno()
        except io.UnsupportedOperation:
            continue  # in memory
        stream.flush()
        lasting = io.BufferedWriter(_Outliving(descriptor, "w", closefd=False))
        setattr(sys, name, io.TextIOWrapper(lasting, stream.encoding, stream.errors, line_buffering=True))
