"""A vocabulary head that samples, on a GPU; the logits exist only in registers.

The vocabulary is cut into slices of `SLICE` tokens. `weigh_slices_kernel`, a matrix product, stores two numbers for
each row and slice: the largest logit, and the mass relative to it. `draw_kernel` inverts the cumulative distribution
over the slices at the row's uniform number. It then computes the logits of the chosen slice again, and inverts their
distribution at the remainder of the number. Each level has its own total, so the second product may round differently
from the first.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..counter import counter_uniform
from ..reference.sample_tokens import logit_offsets
from .tiles import precision_for

SLICE = 32  # tokens; a wider slice costs more to compute again, a narrower one needs more workspace
WORKSPACE_BYTES = 32 * 2**20  # limits the rows at once, so their states stay in L2 while the vocabulary is read
SMALLEST, LARGEST = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max
LOWEST = tl.constexpr(-LARGEST)


class Tiles(NamedTuple):
    """Shapes that compile without spills; found by compiling, see tests/kernels/test_compiled.py."""

    block_t: int
    block_v: int
    block_d: int
    num_warps: int
    num_stages: int


def tiles(dtype: torch.dtype) -> Tiles:
    """The tiles of `weigh_slices_kernel`."""
    if dtype == torch.float32:
        return Tiles(128, 64, 32, num_warps=8, num_stages=2)
    return Tiles(128, 128, 64, num_warps=8, num_stages=3)


class DrawTiles(NamedTuple):
    """Shapes of `draw_kernel`."""

    block_t: int
    slices: int
    block_d: int
    num_warps: int


def draw_tiles(vocabulary: int) -> DrawTiles:
    """The tiles of `draw_kernel`, which holds all slices of a row at once."""
    slices = triton.next_power_of_2(triton.cdiv(vocabulary, SLICE))
    block_t = min(max(1024 // slices, 1), 4)
    return DrawTiles(block_t, slices, 128 // block_t, num_warps=min(max(slices // 256, 4), 16))


def sample_tokens(
    hidden: Tensor,
    embedding: Tensor,
    bias: Tensor | None,
    positions: Tensor,
    *,
    seed: int,
    temperature: float,
    forbidden: Tensor | None,
) -> Tensor:
    """`reference.sample_tokens`."""
    if hidden.dtype != embedding.dtype or hidden.dtype not in (torch.bfloat16, torch.float16):
        hidden, embedding = hidden.float(), embedding.float()
    hidden, embedding = hidden.contiguous(), embedding.contiguous()
    if hidden.data_ptr() % 16:  # without 16-byte loads, a kernel may sum in a different order
        hidden = hidden.clone()
    offsets = logit_offsets(embedding, bias, forbidden, torch.float32)
    # temperature 0 is the limit: only the largest logits have any mass, and the uniform number 0 selects the first
    scale = min(max(math.log2(math.e) / temperature, SMALLEST), LARGEST) if temperature else LARGEST
    uniform = counter_uniform(seed, positions) if temperature else torch.zeros_like(positions, dtype=torch.float64)
    ids = torch.empty_like(positions)
    block_t = tiles(hidden.dtype).block_t
    slices = triton.cdiv(len(embedding), SLICE)
    height = max(1, WORKSPACE_BYTES // (slices * 8 * block_t)) * block_t
    workspace = hidden.new_empty(2, min(height, len(hidden)), slices, dtype=torch.float32)
    with torch.cuda.device_of(hidden):
        for start in range(0, len(hidden), height):
            rows = slice(start, start + height)
            _sample_rows(hidden[rows], embedding, offsets, uniform[rows], scale, workspace, ids[rows])
    return ids


def _sample_rows(
    hidden: Tensor, embedding: Tensor, offsets: Tensor, uniform: Tensor, scale: float, workspace: Tensor, ids: Tensor
) -> None:
    """Fill `ids` for as many rows as the workspace holds."""
    (rows, width), vocabulary = hidden.shape, len(embedding)
    maxima, masses = workspace
    block_t, block_v, block_d, num_warps, num_stages = tiles(hidden.dtype)
    weigh_slices_kernel[(triton.cdiv(rows, block_t), triton.cdiv(vocabulary, block_v))](
        hidden, embedding, offsets, scale, maxima, masses, rows, vocabulary, width,
        SLICE=SLICE, BLOCK_T=block_t, BLOCK_V=block_v, BLOCK_D=block_d, EVEN_D=width % block_d == 0,
        PRECISION=precision_for(hidden), num_warps=num_warps, num_stages=num_stages,
    )  # fmt: skip
    block_t, slices, block_d, num_warps = draw_tiles(vocabulary)
    draw_kernel[(triton.cdiv(rows, block_t),)](
        hidden, embedding, offsets, uniform, scale, maxima, masses, ids, rows, vocabulary, width,
        SLICE=SLICE, SLICES=slices, BLOCK_T=block_t, BLOCK_D=block_d, num_warps=num_warps,
    )  # fmt: skip


@triton.jit(do_not_specialize=["rows"])  # the same kernel for any number of rows: a row must not depend on others
def weigh_slices_kernel(
    hidden, embedding, offsets, scale, maxima, masses, rows, vocabulary, width,
    SLICE: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr, EVEN_D: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """logits = (hidden @ embedding.T + offsets).unflatten(1, (-1, SLICE)); maxima = logits.amax(2);
    masses = ((logits - maxima[..., None]) * scale).exp2().sum(2).
    """
    first_row = tl.program_id(0) * BLOCK_T  # axis 0 varies fastest, so neighbours share a tile of the embedding
    first_token = tl.program_id(1) * BLOCK_V
    row = tl.arange(0, BLOCK_T)
    token = tl.arange(0, BLOCK_V)
    d = tl.arange(0, BLOCK_D)
    # beyond the edge, repeat the last row and the last token
    row_inside = tl.minimum(row, rows - 1 - first_row)
    token_inside = tl.minimum(token, vocabulary - 1 - first_token)
    states = hidden + first_row.to(tl.int64) * width + (row_inside[:, None] * width + d[None, :])
    vectors = embedding + first_token.to(tl.int64) * width + (token_inside[None, :] * width + d[:, None])
    logits = tl.zeros((BLOCK_T, BLOCK_V), tl.float32)
    for start in range(0, width, BLOCK_D):
        if EVEN_D:
            state = tl.load(states)
            vector = tl.load(vectors)
        else:
            state = tl.load(states, mask=start + d[None, :] < width, other=0.0)
            vector = tl.load(vectors, mask=start + d[:, None] < width, other=0.0)
        logits = tl.dot(state, vector, logits, input_precision=PRECISION)
        states += BLOCK_D
        vectors += BLOCK_D
    offset = tl.load(offsets + first_token + token, mask=first_token + token < vocabulary, other=float("-inf"))
    logits = tl.reshape(logits + offset[None, :], (BLOCK_T, BLOCK_V // SLICE, SLICE))
    maximum = tl.maximum(tl.max(logits, 2), LOWEST)  # finite, even if every token of the slice is excluded
    mass = tl.sum(tl.exp2((logits - maximum[:, :, None]) * scale), 2)
    slices = tl.cdiv(vocabulary, SLICE)
    piece = first_token // SLICE + tl.arange(0, BLOCK_V // SLICE)
    place = (first_row + row)[:, None] * slices + piece[None, :]  # WORKSPACE_BYTES keeps this under 2^31
    mask = (first_row + row < rows)[:, None] & (piece < slices)[None, :]
    tl.store(maxima + place, maximum, mask=mask)
    tl.store(masses + place, mass, mask=mask)


@triton.jit(do_not_specialize=["rows"])
def draw_kernel(
    hidden, embedding, offsets, uniform, scale, maxima, masses, ids, rows, vocabulary, width,
    SLICE: tl.constexpr, SLICES: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Draw a slice for each row, then a token within the slice.

    weights = masses * ((maxima - maxima.amax(1, True)) * scale).exp2(); their cumulative sum is inverted at
    uniform * weights.sum(1). The slice found is inverted in the same way.
    """
    row = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    is_row = row < rows
    row = tl.minimum(row, rows - 1)  # beyond the edge, repeat the last row
    slices = tl.cdiv(vocabulary, SLICE)
    piece = tl.arange(0, SLICES)[None, :]
    place = row[:, None] * slices + piece
    maximum = tl.load(maxima + place, mask=piece < slices, other=LOWEST)
    mass = tl.load(masses + place, mask=piece < slices, other=0.0)
    weights = mass * tl.exp2((maximum - tl.max(maximum, 1)[:, None]) * scale)
    found, rest = _invert(weights, piece, tl.load(uniform + row))

    token = (found * SLICE)[:, None] + tl.arange(0, SLICE)[None, :]
    d = tl.arange(0, BLOCK_D)[None, None, :]
    states = hidden + row.to(tl.int64)[:, None, None] * width + d
    vectors = embedding + tl.minimum(token, vocabulary - 1).to(tl.int64)[:, :, None] * width + d
    products = tl.zeros((BLOCK_T, SLICE, BLOCK_D), tl.float32)
    for start in range(0, width, BLOCK_D):
        state = tl.load(states + start, mask=start + d < width, other=0.0).to(tl.float32)
        vector = tl.load(vectors + start, mask=start + d < width, other=0.0).to(tl.float32)
        products += state * vector
    logits = tl.sum(products, 2) + tl.load(offsets + token, mask=token < vocabulary, other=float("-inf"))
    weights = tl.exp2((logits - tl.maximum(tl.max(logits, 1), LOWEST)[:, None]) * scale)
    chosen, _ = _invert(weights, tl.arange(0, SLICE)[None, :], rest)
    tl.store(ids + row, (found * SLICE + chosen).to(tl.int64), mask=is_row)


@triton.jit
def _invert(weights, index, uniform):
    """For each row, the first index whose cumulative weight exceeds the target, uniform * weights.sum(1).

    Also returns where the target lies within this index's weight, from 0 to 1. The index always has weight, however
    the sums are rounded.
    """
    weights = weights.to(tl.float64)
    cumulative = tl.cumsum(weights, 1)
    target = uniform * tl.sum(weights, 1)
    last = tl.max(tl.where(weights > 0, index, 0), 1)
    exceeds = (cumulative > target[:, None]) & (weights > 0)
    found = tl.min(tl.where(exceeds, index, last[:, None]), 1)
    is_found = index == found[:, None]
    end = tl.sum(tl.where(is_found, cumulative, 0.0), 1)
    weight = tl.sum(tl.where(is_found, weights, 0.0), 1)
    rest = 1.0 - (end - target) / weight
    return found, tl.minimum(tl.maximum(rest, 0.0), 1.0)
