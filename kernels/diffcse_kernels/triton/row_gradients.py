"""Turn sums over the rows of the other side into the gradients of the rows themselves."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .normed_rows import Rows


def finish_(
    totals: Tensor,
    factors: Tensor,
    rows: Rows,
    partners: Tensor,
    first_partner: int,
    partner_factors: Tensor,
    normalized: bool,
) -> Tensor:
    """Turn `totals` into gradients in place.

    Args:
        totals: [N, D] float32.
        factors: [N] float32.
        rows: [N, D], the rows that get the gradients.
        partners: [P, D]. The partner of row i is number `first_partner + i`; out of range means that it has none.
        first_partner: may be negative.
        partner_factors: [N] float32.
        normalized: whether the rows were divided by their norms. If so, the radial part is removed from the gradients.

    Returns:
        [N] float32: the radial parts.
    """
    count, width = totals.shape
    radials = totals.new_empty(count)
    if not count:
        return radials
    shape = constants(width)
    row_gradients_kernel[(triton.cdiv(count, shape["BLOCK_M"]),)](
        totals, rows.values, rows.inverse_norms, factors, partners, partner_factors, radials,
        count, width, first_partner, len(partners), PROJECT=normalized, **shape,
    )  # fmt: skip
    return radials


def constants(width: int) -> dict[str, int]:
    """The compile-time arguments for rows of this width: whole rows, about 4096 elements per program."""
    block_d = triton.next_power_of_2(width)
    return {"BLOCK_M": max(1, 4096 // block_d), "BLOCK_D": block_d, "num_warps": max(4, min(32, block_d // 512))}


@triton.jit(do_not_specialize=["num_rows", "first_partner", "num_partners"])
def row_gradients_kernel(
    totals, rows, inverse_norms, factors, partners, partner_factors, radials,
    num_rows, width, first_partner, num_partners,
    PROJECT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """g = factors * totals - partner_factors * partners; h = rows * inverse_norms; radials = (g * h).sum(1);
    totals = g - h * radials if PROJECT else g.
    """
    first = tl.program_id(0) * BLOCK_M
    row = tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    is_row = first + row < num_rows
    mask = is_row[:, None] & (d < width)[None, :]
    inside = row[:, None] * width + d[None, :]
    start = first.to(tl.int64) * width
    partner = first_partner + first + row
    partner_mask = mask & ((partner >= 0) & (partner < num_partners))[:, None]
    partner_values = tl.load(
        partners + (first_partner + first).to(tl.int64) * width + inside, mask=partner_mask, other=0.0
    )
    factor = tl.load(factors + first + row, mask=is_row, other=0.0)
    partner_factor = tl.load(partner_factors + first + row, mask=is_row, other=0.0)
    inverse_norm = tl.load(inverse_norms + first + row, mask=is_row, other=0.0)
    gradient = tl.load(totals + start + inside, mask=mask, other=0.0) * factor[:, None]
    gradient -= partner_values.to(tl.float32) * partner_factor[:, None]
    unit = tl.load(rows + start + inside, mask=mask, other=0.0).to(tl.float32) * inverse_norm[:, None]
    radial = tl.sum(gradient * unit, 1)
    tl.store(radials + first + row, radial, mask=is_row)
    if PROJECT:
        gradient -= unit * radial[:, None]
    tl.store(totals + start + inside, gradient, mask=mask)
