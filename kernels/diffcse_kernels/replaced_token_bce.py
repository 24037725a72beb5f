"""Replaced-token detection (ELECTRA, Clark et al., 2020): head, labels, loss and counts in one read."""

from __future__ import annotations

import torch
from torch import Tensor

from . import reference
from .implementations import resolve
from .reference import RTDCounts

__all__ = ["RTDCounts", "replaced_token_bce"]


def replaced_token_bce(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    original_ids: Tensor,
    edited_ids: Tensor,
    mask: Tensor,
    *,
    impl: str = "auto",
) -> tuple[Tensor, RTDCounts]:
    """Binary cross-entropy of "this token was replaced", summed over the tokens of `mask`.

    It equals

        F.binary_cross_entropy_with_logits(
            (hidden @ weight + bias)[mask], (original_ids != edited_ids)[mask].float(), reduction="sum")

    and keeps, for backward, one number a token instead of the logits, the labels and `hidden`. It returns a
    sum, because only the caller knows over how many tokens, on all processes, the mean is to be taken.

    float64 inputs are computed in float64, all others in float32 (also under autocast); gradients have the
    dtype of their input. Nothing waits for the device. There is no second derivative.

    Args:
        hidden: [T, D], the discriminator's last hidden states; finite, also where `mask` is False.
        weight: [D].
        bias: one element.
        original_ids: [T], integers.
        edited_ids: [T], integers; a token is replaced where the two differ.
        mask: [T], bool; True at the tokens that count.
        impl: "auto", "triton" or "reference".

    Returns:
        The sum of the losses, a scalar of float32 (float64 for float64 inputs), and the counts.

    Raises:
        ValueError: shapes or dtypes that do not fit together, or an implementation that is not installed.
    """
    resolve(impl)
    if hidden.dim() != 2 or not hidden.is_floating_point():
        raise ValueError(f"hidden must be a floating-point matrix, not {list(hidden.shape)} of {hidden.dtype}")
    if weight.shape != hidden.shape[1:] or bias.numel() != 1:
        raise ValueError(
            f"weight must be [{hidden.shape[1]}] and bias one number, not {list(weight.shape)} and {list(bias.shape)}"
        )
    for name, values in (("original_ids", original_ids), ("edited_ids", edited_ids), ("mask", mask)):
        if values.shape != hidden.shape[:1]:
            raise ValueError(f"{name} must be [{len(hidden)}], not {list(values.shape)}")
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool, not {mask.dtype}")
    return reference.replaced_token_bce(hidden, weight, bias, original_ids, edited_ids, mask)
