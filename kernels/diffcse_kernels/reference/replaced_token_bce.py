"""Definition of `diffcse_kernels.replaced_token_bce`."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .blocks import compute_dtype, row_blocks


class RTDCounts(NamedTuple):
    """Counts over the masked tokens, int64 scalars. A token is called replaced when its logit is positive."""

    real: Tensor
    """Tokens in the mask."""
    replaced: Tensor
    """Of these, tokens whose edited id differs from the original."""
    right_on_replaced: Tensor
    """Replaced tokens called replaced."""
    right_on_kept: Tensor
    """Kept tokens called kept."""


def replaced_token_bce(
    hidden: Tensor, weight: Tensor, bias: Tensor, original_ids: Tensor, edited_ids: Tensor, mask: Tensor
) -> tuple[Tensor, RTDCounts]:
    """`diffcse_kernels.replaced_token_bce`."""
    loss_sum, *counts = _ReplacedTokenBCE.apply(hidden, weight, bias, original_ids, edited_ids, mask)
    return loss_sum, RTDCounts(*counts)


class _ReplacedTokenBCE(torch.autograd.Function):
    """Forward reads `hidden` once, for the weight's gradient too; the gradient of `hidden` has rank one."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        original_ids: Tensor,
        edited_ids: Tensor,
        mask: Tensor,
    ) -> tuple[Tensor, ...]:
        dtype = compute_dtype(hidden, weight, bias)
        replaced = original_ids != edited_ids
        head, offset = weight.to(dtype), bias.to(dtype).reshape(())
        logits = torch.empty_like(mask, dtype=dtype)
        slopes = torch.empty_like(logits)
        grad_weight = torch.zeros_like(head)
        with torch.autocast(hidden.device.type, enabled=False):
            for rows in row_blocks(len(hidden), hidden.shape[1] * head.element_size()):
                block = hidden[rows].to(dtype)
                logits[rows] = block @ head + offset
                # d loss / d logit = sigmoid(logit) - label, without the cancellation where the two are close
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
        ctx.save_for_backward(slopes, weight, grad_weight)
        ctx.hidden_dtype, ctx.bias = hidden.dtype, (bias.dtype, bias.shape)
        ctx.mark_non_differentiable(*counts)
        return losses.sum(), *counts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        slopes, weight, grad_weight = ctx.saved_tensors
        slopes = slopes * upstream
        grad_hidden = None
        if ctx.needs_input_grad[0]:
            head = weight.to(slopes.dtype)
            grad_hidden = weight.new_empty(len(slopes), len(head), dtype=ctx.hidden_dtype)
            for rows in row_blocks(len(slopes), len(head) * head.element_size()):
                grad_hidden[rows] = slopes[rows, None] * head
        bias_dtype, bias_shape = ctx.bias
        grad_bias = slopes.sum().to(bias_dtype).reshape(bias_shape)
        return grad_hidden, (grad_weight * upstream).to(weight.dtype), grad_bias, None, None, None
