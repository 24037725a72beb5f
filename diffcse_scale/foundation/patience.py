"""What took long to make is not lost because the disk has no room for it at that moment."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from diffcse_scale.foundation.errors import error_of_disk, told

log = logging.getLogger(__name__)

PATIENCE, PERIOD = 3600.0, 10.0  # seconds


def until_written(write: Callable[[], None], what: str, patience: float = PATIENCE, period: float = PERIOD) -> None:
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
                    "%s cannot be written yet: %s It is kept in memory, and tried again for %.0f minutes.",
                    what,
                    told(found),
                    patience / 60,
                )
                waiting = True
        time.sleep(period)
