"""The progress bars of `datasets`: shown on a terminal only, because they would fill a log file with lines."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import datasets

from diffcse_scale.foundation.working import Working


@contextmanager
def at_work(doing: str) -> Iterator[None]:
    """Inside, show the progress of `datasets`: with its own bars on a terminal, else with an occasional line."""
    if sys.stderr.isatty():
        yield
        return
    datasets.disable_progress_bars()
    with Working(doing):
        yield
