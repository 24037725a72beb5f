"""`diffcse_kernels.replaced_token_bce` in Triton: forward reads `hidden` once, backward writes its gradient once.

The device's copy bandwidth limits both, so the work per token must stay small. Forward gives each row to one warp,
which sums it without a barrier. As many programs as the device can hold at once iterate over the rows. Each program
keeps its part of the weight's gradient in registers. The parts are summed at the end, always in the same order.
"""

# mypy: disable-error-code="assignment"
# (kernels use tuples that grow)

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .strips import processors_of

NUM_STAGES = tl.constexpr(3)  # a row is loaded while the row before it is summed


class ForwardTiles(NamedTuple):
    """A row is read in `parts` blocks of `part` columns; columns beyond the width are masked.

    Triton's blocks are powers of two. A width of 768 in a single block would waste a quarter of the arithmetic.
    """

    part: int
    parts: int
    num_warps: int
    programs: int
    """Programs on each multiprocessor."""


class BackwardTiles(NamedTuple):
    """The rows and columns that one program writes."""

    block_t: int
    block_d: int
    num_warps: int = 8


def forward_tiles(width: int) -> ForwardTiles:
    """Eight columns per thread and part; a multiprocessor's registers hold 16 rows of 1024 columns."""
    part = max(128, triton.next_power_of_2(width) // 4)
    parts = triton.cdiv(width, part)
    programs = max(1, min(32, 16 * 1024 // (part * parts)))
    return ForwardTiles(part, parts, num_warps=min(16, max(1, part // 256)), programs=programs)


def backward_tiles(width: int) -> BackwardTiles:
    """32 elements per thread, if the width allows it."""
    block_d = max(16, triton.next_power_of_2(width))
    return BackwardTiles(block_t=min(64, max(1, 8192 // block_d)), block_d=block_d)


def replaced_token_bce(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    original_ids: Tensor,
    edited_ids: Tensor,
    mask: Tensor,
    needs_gradients: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`diffcse_kernels.reference.replaced_token_bce` for float32, bfloat16 or float16."""
    tokens, width = hidden.shape
    tile = forward_tiles(width)
    programs = min(tokens, tile.programs * processors_of(hidden.device))
    losses = hidden.new_empty(programs, dtype=torch.float32)
    counts = hidden.new_empty(programs, 4, dtype=torch.int32)
    slopes = hidden.new_empty(tokens if needs_gradients else 0, dtype=torch.float32)
    grad_weights = hidden.new_empty(programs, width if needs_gradients else 0, dtype=torch.float32)
    if tokens:
        with torch.cuda.device_of(hidden):
            forward_kernel[(programs,)](
                hidden.contiguous(),
                weight.contiguous(),
                bias,
                original_ids.contiguous(),
                edited_ids.contiguous(),
                mask.contiguous(),
                losses,
                counts,
                slopes,
                grad_weights,
                tokens,
                width,
                GRADIENTS=needs_gradients,
                PART=tile.part,
                PARTS=tile.parts,
                num_warps=tile.num_warps,
            )
    return losses.sum(), slopes, grad_weights.sum(dim=0), counts.sum(dim=0)


def replaced_token_bce_backward(slopes: Tensor, upstream: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """`diffcse_kernels.reference.replaced_token_bce_backward`."""
    tile = backward_tiles(len(weight))
    grad_hidden = slopes.new_empty(len(slopes), len(weight), dtype=dtype)
    if grad_hidden.numel():
        with torch.cuda.device_of(slopes):
            backward_kernel[(triton.cdiv(len(slopes), tile.block_t),)](
                slopes,
                upstream,
                weight.contiguous(),
                grad_hidden,
                *grad_hidden.shape,
                BLOCK_T=tile.block_t,
                BLOCK_D=tile.block_d,
                num_warps=tile.num_warps,
            )
    return grad_hidden


@triton.jit(do_not_specialize=["tokens"])
def forward_kernel(
    hidden,
    weight,
    bias,
    original_ids,
    edited_ids,
    mask,
    losses,
    counts,
    slopes,
    grad_weights,
    tokens,
    width,
    GRADIENTS: tl.constexpr,
    PART: tl.constexpr,
    PARTS: tl.constexpr,
):
    """bce_with_logits((hidden @ weight + bias)[mask], (original_ids != edited_ids)[mask].float(), reduction="sum")"""
    columns = tl.arange(0, PART)
    head, grad_weight = (), ()
    for part in tl.static_range(PARTS):
        here = columns + part * PART
        head += (tl.load(weight + here, mask=here < width, other=0).to(tl.float32),)
        grad_weight += (tl.zeros([PART], tl.float32),)
    shift = tl.load(bias).to(tl.float32)
    loss_sum = 0.0
    real, replaced, right_on_replaced, right_on_kept = 0, 0, 0, 0
    for token in tl.range(tl.program_id(0), tokens, tl.num_programs(0), num_stages=NUM_STAGES):
        counted = tl.load(mask + token)
        label = tl.load(original_ids + token) != tl.load(edited_ids + token)
        first = hidden + tl.cast(token, tl.int64) * width
        state = ()
        products = tl.zeros([PART], tl.float32)
        for part in tl.static_range(PARTS):
            here = columns + part * PART
            state += (tl.load(first + here, mask=here < width, other=0).to(tl.float32),)
            products += state[part] * head[part]
        logit = tl.sum(products) + shift

        loss, slope = loss_and_slope(logit, label)
        loss_sum += tl.where(counted, loss, 0)
        real += counted.to(tl.int32)
        replaced += (counted & label).to(tl.int32)
        right_on_replaced += (counted & label & (logit > 0)).to(tl.int32)
        right_on_kept += (counted & ~label & (logit <= 0)).to(tl.int32)
        if GRADIENTS:
            slope = tl.where(counted, slope, 0)
            tl.store(slopes + token, slope)
            so_far, grad_weight = grad_weight, ()
            for part in tl.static_range(PARTS):
                grad_weight += (so_far[part] + slope * state[part],)

    program = tl.program_id(0)
    tl.store(losses + program, loss_sum)
    store_four(counts + program * 4, real, replaced, right_on_replaced, right_on_kept)
    if GRADIENTS:
        for part in tl.static_range(PARTS):
            here = columns + part * PART
            tl.store(grad_weights + program * width + here, grad_weight[part], mask=here < width)


@triton.jit
def loss_and_slope(logit, label):
    """The loss, softplus of the logit for the wrong label, and its derivative by `logit`.

    The derivative is sigmoid(logit) - label, computed without cancellation if the two are close. log(1 + e) is computed
    as 2 artanh(e / (2 + e)), which stays accurate if 1 + e rounds to 1. Its series is cut at 2e-8 of the result.
    """
    wrong = tl.where(label, -logit, logit)
    e = tl.exp(-tl.abs(wrong))
    s = e / (2 + e)
    q = s * s
    log1p = 2 * s * (1 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11 + q / 13))))))
    sigmoid = tl.where(wrong > 0, 1, e) / (1 + e)
    return tl.maximum(wrong, 0) + log1p, tl.where(label, -sigmoid, sigmoid)


@triton.jit
def store_four(pointer, first, second, third, fourth):
    tl.store(pointer, first)
    tl.store(pointer + 1, second)
    tl.store(pointer + 2, third)
    tl.store(pointer + 3, fourth)


@triton.jit(do_not_specialize=["tokens"])
def backward_kernel(slopes, upstream, weight, grad_hidden, tokens, width, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr):
    """(slopes * upstream)[:, None] * weight"""
    first = tl.cast(tl.program_id(0), tl.int64) * BLOCK_T
    rows = tl.arange(0, BLOCK_T)
    columns = tl.arange(0, BLOCK_D)
    slope = tl.load(slopes + first + rows, mask=first + rows < tokens, other=0) * tl.load(upstream)
    head = tl.load(weight + columns, mask=columns < width, other=0).to(tl.float32)
    inside = (first + rows < tokens)[:, None] & (columns < width)
    block = (slope[:, None] * head).to(grad_hidden.dtype.element_ty)
    tl.store(grad_hidden + first * width + (rows[:, None] * width + columns), block, mask=inside)
