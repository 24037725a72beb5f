"""The ways to compute attention on packed rows: the first of `LAYOUTS` that can take the rows is used."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

VARLEN_DEVICES = {"cuda"}
HALVES = (torch.float16, torch.bfloat16)
KERNELS: dict[str, Callable[..., Any]] = {}  # "varlen" from PyTorch, "flash" from the package flash-attn


class PackedRows(NamedTuple):
    """The positions of packed tokens in their rows.

    Attributes:
        real: [T] int64, ascending indices into the flattened rows; some may be padding.
        rows, length: B and L.
        seen: bool [B, 1, 1 or L, L], which keys a token sees; None if it sees its whole row.
        bounds: [2 B + 1] int32: for each row, where among the T its tokens begin and where its padding begins; then T.
            None if no kernel needs them.
        causal: whether a token sees only earlier tokens.
    """

    real: Tensor
    rows: int
    length: int
    seen: Tensor | None = None
    bounds: Tensor | None = None
    causal: bool = False


class Layout(NamedTuple):
    """One way to compute attention on packed rows.

    Attributes:
        takes: whether this layout supports the query [1, heads, T, D], the dropout probability and the rows.
        attend: maps query, key, value, dropout, scale and rows to [1, T, heads, D]. Keys and values may have fewer
            heads.
    """

    name: str
    takes: Callable[[Tensor, float, PackedRows], bool]
    attend: Callable[[Tensor, Tensor, Tensor, float, float | None, PackedRows], Tensor]


def boundaries(mask: Tensor, real: Tensor) -> Tensor | None:
    """`PackedRows.bounds` for rows that are padded at their ends.

    Padding among the packed tokens becomes a separate row, which no token sees and nobody reads.

    Args:
        mask: [B, L].
        real: as in `PackedRows`.
    """
    if mask.device.type not in VARLEN_DEVICES:
        return None
    _find_kernels()
    rows, length = mask.shape
    starts = torch.searchsorted(real, torch.arange(rows + 1, device=real.device) * length)
    ends = starts[:-1] + mask.sum(1)
    return torch.cat([torch.stack([starts[:-1], ends], dim=1).flatten(), starts[-1:]]).int()


def spread(tokens: Tensor, real: Tensor, positions: int) -> Tensor:
    """[T, ...] to [B * L, ...], zero on padding."""
    if _whole(real, positions):
        return tokens
    return tokens.new_zeros(positions, *tokens.shape[1:]).index_copy(0, real, tokens)


def _takes_varlen(query: Tensor, dropout: float, rows: PackedRows) -> bool:
    return "varlen" in KERNELS and dropout == 0 and _flash_takes(query, rows)


def _takes_flash_attn(query: Tensor, dropout: float, rows: PackedRows) -> bool:
    return "flash" in KERNELS and _flash_takes(query, rows)


def _flash_takes(query: Tensor, rows: PackedRows) -> bool:
    """Whether the input meets the requirements of the FlashAttention kernels."""
    width = query.shape[-1]
    return rows.bounds is not None and width % 8 == 0 and width <= 256 and _computed_in(query) in HALVES


def _computed_in(query: Tensor) -> torch.dtype:
    kind = query.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype


@cache
def _find_kernels() -> None:
    """Fill `KERNELS` with what this process can run; kept out of the attention code, which torch.compile traces."""
    if not torch.cuda.is_available() or torch.version.hip or torch.cuda.get_device_capability() < (8, 0):
        return
    from torch.nn.attention.varlen import varlen_attn  # this import takes seconds

    if inspect.signature(varlen_attn).parameters.keys() >= {"scale", "window_size", "enable_gqa"}:
        KERNELS["varlen"] = varlen_attn
    if importlib.util.find_spec("flash_attn") is not None:
        function = getattr(importlib.import_module("flash_attn"), "flash_attn_varlen_func", None)
        KERNELS.update({"flash": function} if function else {})


def _as_one_row(query: Tensor, *others: Tensor) -> list[Tensor]:
    """[1, heads, T, D] to [T, heads, D], in the dtype in which autocast computes attention."""
    return [tensor[0].transpose(0, 1).to(_computed_in(query)) for tensor in (query, *others)]


def _varlen(query: Tensor, key: Tensor, value: Tensor, dropout: float, scale: float | None, rows: PackedRows) -> Tensor:
    q, k, v = _as_one_row(query, key, value)
    longest = rows.length  # an upper bound costs idle blocks, but reading the exact number would wait for the device
    context: Tensor = KERNELS["varlen"](
        q, k, v, rows.bounds, rows.bounds, longest, longest,
        scale=scale, window_size=(-1, 0) if rows.causal else (-1, -1), enable_gqa=k.shape[1] < q.shape[1],
    )  # fmt: skip
    return context[None]


def _flash(query: Tensor, key: Tensor, value: Tensor, dropout: float, scale: float | None, rows: PackedRows) -> Tensor:
    q, k, v = _as_one_row(query, key, value)
    longest = rows.length
    context: Tensor = KERNELS["flash"](
        q, k, v, rows.bounds, rows.bounds, longest, longest, dropout_p=dropout, softmax_scale=scale, causal=rows.causal
    )
    return context[None]


def _side_by_side(
    query: Tensor, key: Tensor, value: Tensor, dropout: float, scale: float | None, rows: PackedRows
) -> Tensor:
    """Pad the rows again, only for attention."""
    positions = rows.rows * rows.length
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and rows.seen is not None:  # the fast kernels support fewer key heads only without a mask
        key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))

    def in_rows(tokens: Tensor) -> Tensor:  # [1, heads, T, D] to [B, heads, L, D]
        padded = spread(tokens[0].transpose(0, 1), rows.real, positions)
        return padded.unflatten(0, (rows.rows, rows.length)).transpose(1, 2)

    context = F.scaled_dot_product_attention(
        in_rows(query),
        in_rows(key),
        in_rows(value),
        attn_mask=rows.seen,
        dropout_p=dropout,
        scale=scale,
        enable_gqa=key.shape[1] < query.shape[1],
    )
    context = context.transpose(1, 2).flatten(0, 1)
    return (context if _whole(rows.real, positions) else _Gather.apply(context, rows.real))[None]


def _whole(real: Tensor, positions: int) -> bool:
    """Whether there is no padding."""
    return real.shape[0] == positions


class _Gather(torch.autograd.Function):
    """`positions[real]`; its backward need not add, because no two tokens have the same position."""

    @staticmethod
    def forward(ctx: Any, positions: Tensor, real: Tensor) -> Tensor:
        ctx.positions = positions.shape[0]
        ctx.save_for_backward(real)
        return positions.index_select(0, real)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (real,) = ctx.saved_tensors
        return spread(gradient, real, ctx.positions), None


LAYOUTS = (
    Layout("as they are, PyTorch's varlen_attn", _takes_varlen, _varlen),
    Layout("as they are, flash-attn", _takes_flash_attn, _flash),
    Layout("side by side, padded", lambda query, dropout, rows: True, _side_by_side),
)
