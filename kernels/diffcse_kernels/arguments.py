"""Checks that the public functions share."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def check_matrices(**matrices: Tensor) -> None:
    """Raise ValueError unless the rows of the two named matrices can be multiplied with each other."""
    for name, rows in matrices.items():
        if rows.dim() != 2 or not rows.is_floating_point():
            raise ValueError(f"{name} must be a floating-point matrix, not {list(rows.shape)} of {rows.dtype}")
    (left, left_rows), (right, right_rows) = matrices.items()
    if left_rows.shape[1] != right_rows.shape[1]:
        raise ValueError(f"{left} and {right} differ in width: {left_rows.shape[1]} and {right_rows.shape[1]}")


def one_number(name: str, value: float | Tensor, like: Tensor, dtype: torch.dtype) -> Tensor:
    """A number as a `dtype` scalar on the device of `like`; a tensor must hold one number and is returned unchanged."""
    if not isinstance(value, Tensor):
        return like.new_full((), value, dtype=dtype)
    if value.numel() != 1 or not value.is_floating_point():
        raise ValueError(
            f"a {name} tensor must hold one floating-point number, not {list(value.shape)} of {value.dtype}"
        )
    return value


def check_rows(queries: Tensor, keys: Tensor, positive_offset: int) -> None:
    check_matrices(queries=queries, keys=keys)
    if positive_offset < 0 or positive_offset + len(queries) > len(keys):
        raise ValueError(
            f"the positives of {len(queries)} queries at positive_offset={positive_offset} are not all among "
            f"{len(keys)} keys"
        )


def check_row_weights(queries: Tensor, row_weights: Tensor | None) -> None:
    if row_weights is None:
        return
    if row_weights.shape != queries.shape[:1]:
        raise ValueError(f"row_weights must be [{len(queries)}], not {list(row_weights.shape)}")
    if row_weights.requires_grad:
        raise ValueError("row_weights must not require a gradient: they are constants of the loss")


def check_reduction(reduction: str) -> None:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', not {reduction!r}")


def check_temperature(temperature: float | Tensor) -> None:
    if isinstance(temperature, Tensor):
        if temperature.numel() != 1 or not temperature.is_floating_point():
            raise ValueError(
                f"a temperature tensor must hold one floating-point number, not {list(temperature.shape)} "
                f"of {temperature.dtype}"
            )
    elif not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be a positive finite number, not {temperature}")
