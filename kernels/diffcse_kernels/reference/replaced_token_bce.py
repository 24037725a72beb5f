"""Reference implementation of `diffcse_kernels.replaced_token_bce`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..types import RTDCounts
from .blocks import compute_dtype, row_blocks


def replaced_token_bce(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    original_ids: Tensor,
    edited_ids: Tensor,
    mask: Tensor,
    needs_gradients: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The sum of the losses, its derivatives, and the counts.

    `hidden` is read only once, although the weight's gradient needs it too.

    Args:
        hidden: [T, D].
        weight: [D].
        bias: one element.
        original_ids, edited_ids: [T], integers; a token is replaced if the two differ.
        mask: [T], bool; True at the tokens that count.
        needs_gradients: whether the derivatives are wanted.

    Returns:
        The sum of the losses; its derivatives by the logits [T], zero outside the mask, and by the weight [D];
        `RTDCounts` as one tensor of four int64. Without `needs_gradients` both derivatives are empty.

    Example:
        >>> import torch
        >>> from diffcse_kernels.reference import replaced_token_bce
        >>> hidden, weight, bias, mask = torch.zeros(2, 3), torch.ones(3), torch.zeros(1), torch.tensor([True, True])
        >>> original, edited = torch.tensor([5, 6]), torch.tensor([5, 9])
        >>> loss_sum, slopes, _, counts = replaced_token_bce(hidden, weight, bias, original, edited, mask, True)
        >>> loss_sum.exp().round(), slopes, counts  # a logit of 0 costs log 2 a token
        (tensor(4.), tensor([ 0.5000, -0.5000]), tensor([2, 1, 0, 1]))
    """
    dtype = compute_dtype(hidden, weight, bias)
    replaced = original_ids != edited_ids
    head, offset = weight.to(dtype), bias.to(dtype).reshape(())
    logits = torch.empty_like(mask, dtype=dtype)
    slopes = torch.empty_like(logits if needs_gradients else logits[:0])
    grad_weight = torch.zeros_like(head if needs_gradients else head[:0])
    with torch.autocast(hidden.device.type, enabled=False):
        for rows in row_blocks(len(hidden), hidden.shape[1] * head.element_size()):
            block = hidden[rows].to(dtype)
            logits[rows] = block @ head + offset
            if needs_gradients:
                # d loss / d logit = sigmoid(logit) - label, without cancellation if the two are close
                sign = 1 - 2 * replaced[rows].to(dtype)
                slopes[rows] = (sign * torch.sigmoid(sign * logits[rows])).masked_fill(~mask[rows], 0)
                grad_weight += slopes[rows] @ block
    losses = -F.logsigmoid(torch.where(replaced, logits, -logits)).masked_fill(~mask, 0)
    counts = RTDCounts(
        real=mask.sum(),
        replaced=(mask & replaced).sum(),
        right_on_replaced=(mask & replaced & (logits > 0)).sum(),
        right_on_kept=(mask & ~replaced & (logits <= 0)).sum(),
    )
    return losses.sum(), slopes, grad_weight, torch.stack(counts)


def replaced_token_bce_backward(slopes: Tensor, upstream: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradient of `hidden`, a rank-one [T, D] of `dtype`.

    Args:
        slopes: [T], from the forward pass.
        upstream: the gradient of the loss, a scalar.
        weight: [D].
        dtype: the dtype of `hidden`.
    """
    slopes, head = slopes * upstream, weight.to(slopes.dtype)
    grad_hidden = slopes.new_empty(len(slopes), len(head), dtype=dtype)
    for rows in row_blocks(len(slopes), len(head) * head.element_size()):
        grad_hidden[rows] = slopes[rows, None] * head
    return grad_hidden
