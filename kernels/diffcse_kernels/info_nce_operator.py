"""InfoNCE as the `torch.library` operators that autograd, autocast and torch.compile see.

`diffcse_kernels::info_nce` returns its gradients along with the loss. If the factor on every row's loss is already
known, the gradients come from the same pass as the loss. Backward then only multiplies them by the upstream gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .implementations import implementation
from .reference.blocks import compute_dtype
from .scaled_gradients import scaled_gradients
from .types import Contrast, Ids, Needs, Options, Upstream

# the arguments of both operators: the rows; then `Ids`, `Options`, `Needs` and the implementation, field by field
_ROWS = "Tensor queries, Tensor columns, Tensor temperature"
_TOLD = """Tensor? query_ids, Tensor? column_ids, SymInt num_keys, SymInt positive_offset, SymInt? own_hard_negative,
float hard_negative_weight, bool normalize, SymInt[] excluded, float? margin, bool multiple_positives,
bool grad_queries, bool grad_columns, bool grad_temperature, str impl"""


def contrast(
    queries: Tensor,
    columns: Tensor,
    temperature: Tensor,
    coefficients: Tensor | None,
    ids: Ids | None,
    options: Options,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The loss, the logsumexp [N] and the three statistics.

    The loss is `coefficients @ losses`, or the losses [N] if there are no coefficients. The logsumexp has a gradient
    only if there are no coefficients.
    """
    wanted = torch.is_grad_enabled() and coefficients is not None
    loss, logsumexp, *stats, _, _, _ = _info_nce(
        queries,
        columns,
        temperature,
        coefficients,
        *(ids or (None, None)),
        *options._replace(excluded=list(options.excluded)),
        *(wanted and tensor.requires_grad for tensor in (queries, columns, temperature)),
        impl,
    )
    return loss, logsumexp, *stats


@torch.library.custom_op(
    "diffcse_kernels::info_nce",
    mutates_args=(),
    schema=f"({_ROWS}, Tensor? coefficients, {_TOLD}) -> ({', '.join(['Tensor'] * 8)})",
)
def _info_nce(
    queries: Tensor, columns: Tensor, temperature: Tensor, coefficients: Tensor | None, *told: Any
) -> tuple[Tensor, ...]:
    """Loss, logsumexp, statistics, and the gradients of queries, columns and temperature (empty if not wanted)."""
    upstream = None if coefficients is None else Upstream(coefficients)
    found = _run(queries, columns, temperature, upstream, told)
    loss = found.losses if coefficients is None else (coefficients * found.losses).sum()
    empty = found.losses.new_empty
    gradients = (empty(0) if gradient is None else gradient for gradient in found.gradients)
    return loss, found.logsumexp, *found.stats, *gradients


@_info_nce.register_fake
def _(
    queries: Tensor, columns: Tensor, temperature: Tensor, coefficients: Tensor | None, *told: Any
) -> tuple[Tensor, ...]:
    def result(*shape: int) -> Tensor:
        return queries.new_empty(shape, dtype=compute_dtype(queries, columns))

    needs = _understood(told)[2]
    rows = len(queries)
    gradients = (
        result(*queries.shape) if needs.queries else result(0),
        result(*columns.shape) if needs.columns else result(0),
        result() if needs.temperature else result(0),
    )
    loss = result(rows) if coefficients is None else result()
    return loss, result(rows), result(), result(), result(), *gradients


@torch.library.custom_op(
    "diffcse_kernels::info_nce_backward",
    mutates_args=(),
    schema=f"(Tensor of_losses, Tensor of_logsumexp, {_ROWS}, {_TOLD}) -> (Tensor, Tensor, Tensor)",
)
def _info_nce_backward(
    of_losses: Tensor, of_logsumexp: Tensor, queries: Tensor, columns: Tensor, temperature: Tensor, *told: Any
) -> tuple[Tensor, ...]:
    """The gradients of `of_losses @ losses + of_logsumexp @ logsumexp`; this computes the similarities again.

    An empty `of_logsumexp` stands for zero. Gradients that are not wanted are empty.
    """
    upstream = Upstream(of_losses, of_logsumexp if len(of_logsumexp) else None)
    found = _run(queries, columns, temperature, upstream, told)
    empty = found.losses.new_empty
    inputs = (queries, columns, temperature)
    pairs = zip(found.gradients, inputs, strict=True)
    return tuple(empty(0) if g is None else g.to(x.dtype).reshape(x.shape) for g, x in pairs)


@_info_nce_backward.register_fake
def _(
    of_losses: Tensor, of_logsumexp: Tensor, queries: Tensor, columns: Tensor, temperature: Tensor, *told: Any
) -> tuple[Tensor, ...]:
    inputs = zip((queries, columns, temperature), _understood(told)[2], strict=True)
    nothing = (0,), compute_dtype(queries, columns)
    forms = ((x.shape, x.dtype) if wanted else nothing for x, wanted in inputs)
    return tuple(queries.new_empty(shape, dtype=dtype) for shape, dtype in forms)


def _run(
    queries: Tensor, columns: Tensor, temperature: Tensor, upstream: Upstream | None, told: tuple[Any, ...]
) -> Contrast:
    ids, options, needs, impl = _understood(told)
    module = implementation(impl if len(queries) else "reference", "info_nce")
    found: Contrast = module.contrast(queries, columns, temperature, upstream, ids, options, needs)
    return found


def _understood(told: tuple[Any, ...]) -> tuple[Ids | None, Options, Needs, str]:
    """The operators' arguments after the rows, as `Ids`, `Options`, `Needs` and the implementation."""
    query_ids, column_ids, *others, impl = told
    ids = None if query_ids is None else Ids(query_ids, column_ids)
    return ids, Options(*others[:-3]), Needs(*others[-3:]), impl


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    queries, columns, temperature, coefficients, query_ids, column_ids, *options = inputs
    *ctx.options, _, _, _, ctx.impl = options
    ctx.per_row = coefficients is None
    ctx.forms = [(x.dtype, x.shape) for x in (queries, columns, temperature)]
    kept = (queries, columns, temperature, query_ids, column_ids)
    ctx.save_for_backward(*(kept if ctx.per_row else output[5:]))
    ctx.mark_non_differentiable(*output[2 if ctx.per_row else 1 :])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, of_losses: Tensor | None, of_logsumexp: Tensor | None, *_: Tensor) -> tuple[Any, ...]:
    needs = ctx.needs_input_grad[:3]
    if ctx.per_row:
        rows, ids = ctx.saved_tensors[:3], ctx.saved_tensors[3:]
        nothing = rows[0].new_empty(0, dtype=compute_dtype(*rows[:2]))
        of_losses = nothing.new_zeros(len(rows[0])) if of_losses is None else of_losses.contiguous()
        of_logsumexp = nothing if of_logsumexp is None else of_logsumexp.contiguous()
        found = _info_nce_backward(of_losses, of_logsumexp, *rows, *ids, *ctx.options, *needs, ctx.impl)
    else:
        found = scaled_gradients(ctx.saved_tensors, of_losses, needs, ctx.forms)
    gradients = [gradient if needed else None for gradient, needed in zip(found, needs, strict=True)]
    return *gradients, *(None,) * 15


_info_nce.register_autograd(_backward, setup_context=_keep_for_backward)
