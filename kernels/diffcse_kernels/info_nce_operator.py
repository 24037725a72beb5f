"""InfoNCE as `torch.library` operators: what autograd, autocast and torch.compile see of it.

`diffcse_kernels::info_nce` returns its gradients along with the loss. They are made in the same pass as the loss
wherever the factor on every row's loss is known by then, and backward only multiplies them by the upstream gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .implementations import implementation
from .reference.blocks import compute_dtype
from .types import Needs, Options


def contrast(
    queries: Tensor,
    columns: Tensor,
    temperature: Tensor,
    coefficients: Tensor | None,
    num_keys: int,
    positive_offset: int,
    own_hard_negative: int | None,
    hard_negative_weight: float,
    normalize: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`coefficients @ losses`, or without coefficients the losses [N]; and the three statistics."""
    wanted = torch.is_grad_enabled() and coefficients is not None
    loss, *stats, _, _, _ = _info_nce(
        queries,
        columns,
        temperature,
        coefficients,
        num_keys,
        positive_offset,
        own_hard_negative,
        hard_negative_weight,
        normalize,
        *(wanted and tensor.requires_grad for tensor in (queries, columns, temperature)),
        impl,
    )
    return loss, *stats


_Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


@torch.library.custom_op("diffcse_kernels::info_nce", mutates_args=())
def _info_nce(
    queries: Tensor,
    columns: Tensor,
    temperature: Tensor,
    coefficients: Tensor | None,
    num_keys: int,
    positive_offset: int,
    own_hard_negative: int | None,
    hard_negative_weight: float,
    normalize: bool,
    grad_queries: bool,
    grad_columns: bool,
    grad_temperature: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Loss, statistics, and the gradients of queries, columns and temperature, empty where not wanted."""
    options = Options(num_keys, positive_offset, own_hard_negative, hard_negative_weight, normalize)
    needs = Needs(grad_queries, grad_columns, grad_temperature)
    run = implementation(impl if len(queries) else "reference", "info_nce").contrast
    losses, stats, gradients = run(queries, columns, temperature, coefficients, options, needs)
    loss = losses if coefficients is None else (coefficients * losses).sum()
    return loss, *stats, *(losses.new_empty(0) if gradient is None else gradient for gradient in gradients)


@_info_nce.register_fake
def _(
    queries: Tensor,
    columns: Tensor,
    temperature: Tensor,
    coefficients: Tensor | None,
    num_keys: int,
    positive_offset: int,
    own_hard_negative: int | None,
    hard_negative_weight: float,
    normalize: bool,
    grad_queries: bool,
    grad_columns: bool,
    grad_temperature: bool,
    impl: str,
) -> _Outputs:
    def result(*shape: int) -> Tensor:
        return queries.new_empty(shape, dtype=compute_dtype(queries, columns))

    loss = result(len(queries)) if coefficients is None else result()
    gradients = (
        result(*queries.shape) if grad_queries else result(0),
        result(*columns.shape) if grad_columns else result(0),
        result() if grad_temperature else result(0),
    )
    return loss, result(), result(), result(), *gradients


@torch.library.custom_op("diffcse_kernels::info_nce_backward", mutates_args=())
def _info_nce_backward(
    upstream: Tensor,
    queries: Tensor,
    columns: Tensor,
    temperature: Tensor,
    num_keys: int,
    positive_offset: int,
    own_hard_negative: int | None,
    hard_negative_weight: float,
    normalize: bool,
    grad_queries: bool,
    grad_columns: bool,
    grad_temperature: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `upstream @ losses`, which computes the similarities again; empty where not wanted."""
    options = Options(num_keys, positive_offset, own_hard_negative, hard_negative_weight, normalize)
    needs = Needs(grad_queries, grad_columns, grad_temperature)
    run = implementation(impl if len(queries) else "reference", "info_nce").contrast
    losses, _, gradients = run(queries, columns, temperature, upstream, options, needs)
    empty = losses.new_empty(0)
    inputs = (queries, columns, temperature)
    found = [empty.clone() if g is None else g.to(x.dtype) for g, x in zip(gradients, inputs, strict=True)]
    return found[0], found[1], found[2].reshape(temperature.shape) if grad_temperature else found[2]


@_info_nce_backward.register_fake
def _(
    upstream: Tensor,
    queries: Tensor,
    columns: Tensor,
    temperature: Tensor,
    num_keys: int,
    positive_offset: int,
    own_hard_negative: int | None,
    hard_negative_weight: float,
    normalize: bool,
    grad_queries: bool,
    grad_columns: bool,
    grad_temperature: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    empty = queries.new_empty(0, dtype=compute_dtype(queries, columns))
    inputs = ((queries, grad_queries), (columns, grad_columns), (temperature, grad_temperature))
    found = [x.new_empty(x.shape) if wanted else empty.clone() for x, wanted in inputs]
    return found[0], found[1], found[2]


@torch.library.custom_op("diffcse_kernels::scaled_gradient", mutates_args=())
def _scaled_gradient(gradient: Tensor, upstream: Tensor, dtype: torch.dtype) -> Tensor:
    """(gradient * upstream).to(dtype) without the product in the gradient's own dtype.

    The product comes first: half-precision gradients would underflow before a loss scale is applied. An operator
    of its own because it has no derivative: there is no second derivative of the loss.
    """
    return torch.mul(gradient, upstream, out=torch.empty_like(gradient, dtype=dtype))


@_scaled_gradient.register_fake
def _(gradient: Tensor, upstream: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(gradient, dtype=dtype)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: _Outputs) -> None:
    queries, columns, temperature, coefficients, *options = inputs
    *ctx.options, _, _, _, ctx.impl = options
    ctx.per_row = coefficients is None
    ctx.forms = [(x.dtype, x.shape) for x in (queries, columns, temperature)]
    ctx.save_for_backward(*((queries, columns, temperature) if ctx.per_row else output[4:]))
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad[:3]
    if ctx.per_row:
        found = _info_nce_backward(upstream.contiguous(), *ctx.saved_tensors, *ctx.options, *needs, ctx.impl)
    else:
        found = [
            _scaled_gradient(gradient, upstream, dtype).reshape(shape) if needed else None
            for gradient, needed, (dtype, shape) in zip(ctx.saved_tensors, needs, ctx.forms, strict=True)
        ]
    gradients = [gradient if needed else None for gradient, needed in zip(found, needs, strict=True)]
    return *gradients, *(None,) * (10)


_info_nce.register_autograd(_backward, setup_context=_keep_for_backward)
