"""Errors of a file server that may be gone a moment later: a handle that is stale, an answer that did not come."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE = 5.0  # seconds
PASSING = {
    *(errno.ESTALE, errno.EIO, errno.EREMOTEIO, errno.ETIMEDOUT, errno.EINTR, errno.EBUSY, errno.ENOMEM),
    *(errno.ECONNRESET, errno.ECONNABORTED, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH),
}


def patiently(do: Callable[[], T]) -> T:
    """What `do` gives, which is called again for a short while if such an error ends it.

    Raises:
        OSError: it has not gone, or is another.
    """
    deadline, pause = time.monotonic() + PATIENCE, 0.02
    while True:
        try:
            return do()
        except OSError as error:
            if error.errno not in PASSING or time.monotonic() + pause > deadline:
                raise
        time.sleep(pause)
        pause *= 2
