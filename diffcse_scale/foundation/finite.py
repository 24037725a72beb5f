"""Checks for numbers that are not finite (NaN or infinity) before they are written, ranked or scored."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffcse_scale.foundation.errors import InputError

NAMED = 3  # most rows that a message names


class NotFinite(InputError):
    """Some numbers are not finite. The message says which, and what to do."""


def rows_not_finite(matrix: NDArray[Any]) -> NDArray[np.int64]:
    """Indices of the rows of [n, d] with NaN or infinity. An all-finite matrix is read once and not copied."""
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(matrix.sum(dtype=np.float32 if matrix.dtype == np.float16 else None)):
            return np.empty(0, np.int64)
    return np.flatnonzero(~np.isfinite(matrix).all(axis=1))


def check_rows(matrix: NDArray[Any], what: str, advice: str, first: int = 0) -> None:
    """Refuse rows that are not finite.

    Args:
        matrix: [n, d].
        what: what the rows belong to, with a preposition: "of the corpus".
        advice: what to do.
        first: the number of the first row.

    Raises:
        NotFinite: a row is not finite; the message names the first such rows.
    """
    bad = rows_not_finite(matrix)
    if len(bad):
        names = ", ".join(f"{first + row:,}" for row in bad[:NAMED].tolist())
        more = f" and {len(bad) - NAMED:,} more" if len(bad) > NAMED else ""
        rows = f"Row {names} {what} has" if len(bad) == 1 else f"Rows {names}{more} {what} have"
        raise NotFinite(f"{rows} numbers that are not finite (NaN or infinity); {advice}.")
