"""Replaced-token detection (ELECTRA, Clark et al., 2020): head, labels, loss and counts in one pass over memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .implementations import implementation, resolve
from .reference.blocks import compute_dtype
from .types import RTDCounts

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
    """Binary cross-entropy of "this token was replaced", summed over the tokens in `mask`.

    It equals

        F.binary_cross_entropy_with_logits(
            (hidden @ weight + bias)[mask], (original_ids != edited_ids)[mask].float(), reduction="sum")

    but keeps one number per token for backward instead of the logits, the labels and `hidden`. It returns a sum,
    because only the caller knows the number of tokens on all processes, which a mean would need.

    float64 inputs are computed in float64, all others in float32 (also under autocast). Gradients have the dtype of
    their input. Nothing waits for the device. Second derivatives are not supported.

    Source: L_Disc in section 2 of ELECTRA (Clark et al., 2020, arXiv 2003.10555). DiffCSE (arXiv 2204.10298)
    conditions it on the sentence embedding.

    Args:
        hidden: [T, D], the discriminator's last hidden states. They must be finite, also where `mask` is False.
        weight: [D].
        bias: one element.
        original_ids: [T], integers.
        edited_ids: [T], integers; a token is replaced if its two ids differ.
        mask: [T], bool; True at the tokens that count.
        impl: "auto", "triton" or "reference".

    Returns:
        The sum of the losses, a float32 scalar (float64 for float64 inputs), and the counts.

    Raises:
        ValueError: shapes or dtypes that do not fit together, or an implementation that cannot run here.

    Example:
        >>> import torch
        >>> from torch.nn import functional as F
        >>> from diffcse_kernels import replaced_token_bce
        >>> hidden, weight, bias = torch.tensor([[2.0], [-1.0], [3.0]]), torch.ones(1), torch.zeros(1)
        >>> original, edited = torch.tensor([5, 6, 7]), torch.tensor([9, 6, 7])
        >>> mask = torch.tensor([True, True, False])  # the last one is padding
        >>> loss_sum, counts = replaced_token_bce(hidden, weight, bias, original, edited, mask)
        >>> counts.real.item(), counts.replaced.item()
        (2, 1)
        >>> logits, labels = torch.tensor([2.0, -1.0]), torch.tensor([1.0, 0.0])
        >>> torch.allclose(loss_sum, F.binary_cross_entropy_with_logits(logits, labels, reduction="sum"))
        True
    """
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
    dtype = compute_dtype(hidden, weight, bias)
    impl = resolve(impl, "replaced_token_bce", hidden.numel(), hidden.device, dtype)
    needs_gradients = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (hidden, weight, bias))
    loss_sum, _, _, counts = _forward(hidden, weight, bias, original_ids, edited_ids, mask, needs_gradients, impl)
    return loss_sum, RTDCounts(*counts.unbind())


@torch.library.custom_op("diffcse_kernels::replaced_token_bce", mutates_args=())
def _forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    original_ids: Tensor,
    edited_ids: Tensor,
    mask: Tensor,
    needs_gradients: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`reference.replaced_token_bce`."""
    return implementation(impl, "replaced_token_bce").replaced_token_bce(
        hidden, weight, bias, original_ids, edited_ids, mask, needs_gradients
    )


@_forward.register_fake
def _(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    original_ids: Tensor,
    edited_ids: Tensor,
    mask: Tensor,
    needs_gradients: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = compute_dtype(hidden, weight, bias)
    tokens, width = hidden.shape if needs_gradients else (0, 0)
    return (
        hidden.new_empty((), dtype=dtype),
        hidden.new_empty(tokens, dtype=dtype),
        hidden.new_empty(width, dtype=dtype),
        hidden.new_empty(4, dtype=torch.int64),
    )


@torch.library.custom_op("diffcse_kernels::replaced_token_bce_backward", mutates_args=())
def _backward(slopes: Tensor, upstream: Tensor, weight: Tensor, dtype: torch.dtype, impl: str) -> Tensor:
    """`reference.replaced_token_bce_backward`."""
    return implementation(impl, "replaced_token_bce").replaced_token_bce_backward(slopes, upstream, weight, dtype)


@_backward.register_fake
def _(slopes: Tensor, upstream: Tensor, weight: Tensor, dtype: torch.dtype, impl: str) -> Tensor:
    return slopes.new_empty(len(slopes), len(weight), dtype=dtype)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, bias, *_, impl = inputs
    _, slopes, grad_weight, counts = output
    ctx.save_for_backward(slopes, weight, grad_weight)
    ctx.hidden_dtype, ctx.bias, ctx.impl = hidden.dtype, (bias.dtype, bias.shape), impl
    ctx.mark_non_differentiable(slopes, grad_weight, counts)


@once_differentiable
def _gradients(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    slopes, weight, grad_weight = ctx.saved_tensors
    grad_hidden = None
    if ctx.needs_input_grad[0]:
        grad_hidden = _backward(slopes, upstream, weight, ctx.hidden_dtype, ctx.impl)
    bias_dtype, bias_shape = ctx.bias
    grad_bias = (slopes.sum() * upstream).to(bias_dtype).reshape(bias_shape)
    return grad_hidden, (grad_weight * upstream).to(weight.dtype), grad_bias, *[None] * 5


_forward.register_autograd(_gradients, setup_context=_save)
