"""The bars of `datasets`: on a terminal they move; a log file would have a thousand lines of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import datasets

from diffcse_scale.foundation.working import Working


@contextmanager
def at_work(doing: str) -> Iterator[None]:
    """Show what `datasets` does within: by its own bars on a terminal, by a line now and then elsewhere."""
    if sys.stderr.isatty():
        yield
        return
    datasets.disable_progress_bars()
    with Working(doing):
        yield
