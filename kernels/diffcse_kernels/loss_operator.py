"""Losses as `torch.library` operators that return their gradients along with their value.

This works as in `info_nce_operator`. If the factor on every row's loss is known, one pass computes loss and gradients,
and backward only multiplies the gradients by the upstream gradient. If the losses of the rows are returned, backward
computes the pass again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .implementations import implementation
from .reference.blocks import compute_dtype
from .scaled_gradients import scaled_gradients
from .types import Ids


def loss_operator(name: str, needs_type: Any, options: str) -> Callable[..., Tensor]:
    """Define the operators of a loss, `diffcse_kernels::NAME` and `::NAME_backward`.

    Args:
        name: name of the loss. In both implementations the module and its function have this name too. The function
            takes the inputs, the coefficients, `Ids` or None, the options and the needs. It returns the losses of the
            rows and a tuple of gradients, with None for a gradient that is not wanted.
        needs_type: a named tuple with a field for each input that may have a gradient, the rows of both sides first.
        options: the operator schema of the implementations' further arguments.

    Returns:
        A function of the inputs (a tuple), the coefficients ([N], or None), the ids, the options and the
        implementation. It returns `coefficients @ losses`, or the losses [N] if there are no coefficients.
    """
    count = len(needs_type._fields)
    inputs = ", ".join(f"Tensor {field}" for field in needs_type._fields)
    told = f"Tensor? query_ids, Tensor? column_ids, {options}, bool[] needs, str impl"
    gradients = ", ".join(["Tensor"] * count)

    def run(tensors: tuple[Any, ...], coefficients: Tensor | None, told: tuple[Any, ...]) -> Any:
        query_ids, column_ids, *others, needs, impl = told
        module = implementation(impl if len(tensors[0]) else "reference", name)
        ids = None if query_ids is None else Ids(query_ids, column_ids)
        return getattr(module, name)(*tensors, coefficients, ids, *others, needs_type(*needs))

    @torch.library.custom_op(
        f"diffcse_kernels::{name}",
        mutates_args=(),
        schema=f"({inputs}, Tensor? coefficients, {told}) -> (Tensor, {gradients})",
    )
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        """The loss, and the gradients of the inputs; a gradient that is not wanted is empty."""
        coefficients = arguments[count]
        losses, found = run(arguments[:count], coefficients, arguments[count + 1 :])
        loss = losses if coefficients is None else (coefficients * losses).sum()
        return loss, *(losses.new_empty(0) if gradient is None else gradient for gradient in found)

    @forward.register_fake
    def _(*arguments: Any) -> tuple[Tensor, ...]:
        rows, dtype = arguments[0], compute_dtype(*arguments[:2])
        shapes = (rows.shape[:1] if arguments[count] is None else (), rows.shape, arguments[1].shape)
        wanted = zip((*shapes, *[()] * (count - 2)), [True, *arguments[-2]], strict=True)
        return tuple(rows.new_empty(shape if needed else (0,), dtype=dtype) for shape, needed in wanted)

    @torch.library.custom_op(
        f"diffcse_kernels::{name}_backward",
        mutates_args=(),
        schema=f"(Tensor upstream, {inputs}, {told}) -> ({gradients})",
    )
    def backward(upstream: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        """The gradients of `upstream @ losses`; a gradient that is not wanted is empty."""
        tensors = arguments[:count]
        pairs = zip(run(tensors, upstream, arguments[count:])[1], tensors, strict=True)
        return tuple(x.new_empty(0) if g is None else g.to(x.dtype).reshape(x.shape) for g, x in pairs)

    @backward.register_fake
    def _(upstream: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        wanted = zip(arguments[:count], arguments[-2], strict=True)
        return tuple(x.new_empty(x.shape if needed else (0,)) for x, needed in wanted)

    _differentiate(forward, backward, count)

    def loss(tensors: tuple[Tensor, ...], coefficients: Tensor | None, ids: Ids | None, *told: Any) -> Tensor:
        *others, impl = told
        wanted = torch.is_grad_enabled() and coefficients is not None
        needs = [wanted and tensor.requires_grad for tensor in tensors]
        value, *_ = forward(*tensors, coefficients, *(ids or (None, None)), *others, needs, impl)
        return value

    return loss


def _differentiate(forward: Any, backward: Any, count: int) -> None:
    """Register the gradients of an operator's first `count` arguments."""

    def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        coefficients, query_ids, column_ids, *ctx.options, _, ctx.impl = inputs[count:]
        ctx.per_row = coefficients is None
        ctx.forms = [(x.dtype, x.shape) for x in inputs[:count]]
        ctx.save_for_backward(*((*inputs[:count], query_ids, column_ids) if ctx.per_row else output[1:]))
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    def gradients(ctx: Any, upstream: Tensor | None, *_: Tensor) -> tuple[Tensor | None, ...]:
        needs = [needed and upstream is not None for needed in ctx.needs_input_grad[:count]]
        if ctx.per_row and upstream is not None:
            found = backward(upstream.contiguous(), *ctx.saved_tensors, *ctx.options, needs, ctx.impl)
        else:
            found = scaled_gradients(ctx.saved_tensors[:count], upstream, needs, ctx.forms)
        constant = (None,) * (5 + len(ctx.options))  # coefficients, ids, options, needs, impl
        return *(gradient if needed else None for gradient, needed in zip(found, needs, strict=True)), *constant

    forward.register_autograd(gradients, setup_context=keep)
