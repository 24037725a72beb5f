"""Retries operations that may succeed later: a file server does not answer, or a disk is full."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from typing import TypeVar

from diffcse_scale.foundation.errors import error_of_disk, told

log = logging.getLogger(__name__)

T = TypeVar("T")

PATIENCE = 5.0  # seconds to retry with a file server
FOR_ROOM, PERIOD = 3600.0, 10.0  # seconds to wait for free disk space, and between two attempts
PASSING = {
    *(errno.ESTALE, errno.EIO, errno.EREMOTEIO, errno.ETIMEDOUT, errno.EINTR, errno.EBUSY, errno.ENOMEM),
    *(errno.ECONNRESET, errno.ECONNABORTED, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH),
}


def patiently(do: Callable[[], T]) -> T:
    """Call `do` and return its result. If it fails with a `PASSING` error, retry for a short while.

    Raises:
        OSError: the error persists or is not in `PASSING`.
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


def until_written(write: Callable[[], None], what: str, patience: float = FOR_ROOM, period: float = PERIOD) -> None:
    """Call `write`, and retry while the disk refuses.

    Args:
        what: what is written, as the subject of a sentence.
        patience: seconds after which to give up.
        period: seconds between two attempts.

    Raises:
        OSError: `patience` has run out.
    """
    began, waiting = time.monotonic(), False
    while True:
        try:
            return write()
        except Exception as error:
            found = error if isinstance(error, OSError) else error_of_disk(error)
            if found is None or time.monotonic() - began >= patience:
                raise
            if not waiting:
                log.warning(
                    "%s cannot be written yet: %s It is kept in memory, and writing is tried again for %.0f minutes.",
                    what,
                    told(found),
                    patience / 60,
                )
                waiting = True
        time.sleep(period)
