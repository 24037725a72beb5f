"""Correct the bfloat16 products and casts of Triton's interpreter, which are silently wrong.

The interpreter holds bfloat16 as uint16 and multiplies these integers. It truncates casts from float32, although a GPU
rounds to nearest even. The other bfloat16 arithmetic (+, *, sum, where) stays wrong. The kernels therefore cast what
they load to float32 first, as they would anyway. Seen in triton 3.6.0 and 3.9.0; tests check that the repair works.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter


def make_bfloat16_right() -> None:
    """Replace the interpreter's product and cast; further calls do nothing."""
    builder = interpreter.InterpreterBuilder
    if getattr(builder, "bfloat16_is_right", False):
        return
    product, cast = builder.create_dot, builder.cast_impl

    def create_dot(self: Any, left: Any, right: Any, accumulator: Any, *options: Any) -> Any:
        return product(self, _widened(left), _widened(right), accumulator, *options)

    def cast_impl(self: Any, source: Any, target: Any) -> Any:
        if target.scalar == tl.bfloat16 and source.dtype.scalar == tl.float32:
            return interpreter.TensorHandle(_rounded(source.data), target.scalar)
        return cast(self, source, target)

    builder.create_dot, builder.cast_impl = create_dot, cast_impl
    builder.bfloat16_is_right = True


def _widened(operand: Any) -> Any:
    if operand.dtype.scalar != tl.bfloat16:
        return operand
    return interpreter.TensorHandle((operand.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def _rounded(values: np.ndarray) -> np.ndarray:
    """The upper 16 bits of float32, rounded to nearest even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    halves = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), halves)
