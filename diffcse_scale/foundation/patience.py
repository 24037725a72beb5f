"""Retries what may succeed a moment later: a file server that does not answer, a disk that is full."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from typing import TypeVar

from diffcse_scale.foundation.errors import error_of_disk, told

log = logging.getLogger(__name__)

T = TypeVar("T")

PATIENCE = 5.0  # seconds, with a file server
FOR_ROOM, PERIOD = 3600.0, 10.0  # seconds, for room for what took long to make, and between two attempts
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


def until_written(write: Callable[[], None], what: str, patience: float = FOR_ROOM, period: float = PERIOD) -> None:
    """Call `write`, and call it again while the disk refuses.

    Args:
        what: is written, as the subject of a sentence.
        patience: seconds after which it is given up.
        period: seconds between two attempts.

    Raises:
        OSError: it is given up.
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
