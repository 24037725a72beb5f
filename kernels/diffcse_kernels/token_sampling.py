"""A vocabulary head that samples: token ids straight from hidden states, without the logits of all rows."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import reference
from .implementations import resolve

__all__ = ["sample_tokens"]


def sample_tokens(
    hidden: Tensor,
    embedding: Tensor,
    bias: Tensor | None,
    positions: Tensor,
    *,
    seed: int,
    temperature: float = 1.0,
    forbidden: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """Draw one token a row from softmax((hidden @ embedding.T + bias) / temperature).

    Row `i` uses one uniform number, `counter_uniform(seed, positions[i])`, and inverts its cumulative
    distribution there. Nothing else is random: the token depends on the seed, the row's position and the
    row's hidden state, not on the rows that share its call. (The uniform number is the same to the bit. The
    logits are too, because every product has the same number of rows whatever the size of the call. Between
    devices and libraries, whose products round differently, a token can change only when its number falls
    within rounding of a step of the distribution.)

    float64 inputs are computed in float64, all others in float32 (also under autocast). No gradient.

    Args:
        hidden: [T, D], the states before the vocabulary head's last product.
        embedding: [V, D].
        bias: [V] or None.
        positions: [T], int64: a number for each row that names it in the whole run.
        seed: any integer.
        temperature: 0 gives the most probable token.
        forbidden: [V], bool: True at the tokens that are never drawn. One at least must be allowed; that is
            checked only on a CPU, because it would wait for the device.
        impl: "auto", "triton" or "reference".

    Returns:
        ids: [T], int64.

    Raises:
        ValueError: shapes, dtypes or options that do not fit together, or an implementation that is not
            installed.
    """
    resolve(impl)
    for name, rows in (("hidden", hidden), ("embedding", embedding)):
        if rows.dim() != 2 or not rows.is_floating_point():
            raise ValueError(f"{name} must be a floating-point matrix, not {list(rows.shape)} of {rows.dtype}")
    if hidden.shape[1] != embedding.shape[1]:
        raise ValueError(f"hidden and embedding differ in width: {hidden.shape[1]} and {embedding.shape[1]}")
    for name, values in (("bias", bias), ("forbidden", forbidden)):
        if values is not None and values.shape != embedding.shape[:1]:
            raise ValueError(f"{name} must be [{len(embedding)}], not {list(values.shape)}")
    if positions.shape != hidden.shape[:1] or positions.dtype != torch.int64:
        raise ValueError(
            f"positions must be [{len(hidden)}] of int64, not {list(positions.shape)} of {positions.dtype}"
        )
    if forbidden is not None:
        if forbidden.dtype != torch.bool:
            raise ValueError(f"forbidden must be bool, not {forbidden.dtype}")
        if forbidden.device.type == "cpu" and bool(forbidden.all()):
            raise ValueError("forbidden excludes every token of the vocabulary")
    if not (temperature >= 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be 0 or a positive finite number, not {temperature}")
    return reference.sample_tokens(
        hidden, embedding, bias, positions, seed=seed, temperature=temperature, forbidden=forbidden
    )
