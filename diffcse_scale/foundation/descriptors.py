"""The number of files and connections that this process may have open."""

from __future__ import annotations

import resource
from contextlib import suppress


def allow_all_descriptors() -> float:
    """Raise the soft limit (`ulimit -n`) to the hard limit, which only an administrator can raise, and return it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # macOS allows less than its hard limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return float("inf") if soft == resource.RLIM_INFINITY else soft
