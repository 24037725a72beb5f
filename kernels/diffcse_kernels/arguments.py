"""Checks that the public functions share."""

from __future__ import annotations

from torch import Tensor


def check_matrices(**matrices: Tensor) -> None:
    """Two matrices, given by name, whose rows are multiplied with each other; ValueError if they cannot be."""
    for name, rows in matrices.items():
        if rows.dim() != 2 or not rows.is_floating_point():
            raise ValueError(f"{name} must be a floating-point matrix, not {list(rows.shape)} of {rows.dtype}")
    (left, left_rows), (right, right_rows) = matrices.items()
    if left_rows.shape[1] != right_rows.shape[1]:
        raise ValueError(f"{left} and {right} differ in width: {left_rows.shape[1]} and {right_rows.shape[1]}")
