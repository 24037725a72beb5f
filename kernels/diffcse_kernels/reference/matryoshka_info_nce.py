"""Reference implementation of `diffcse_kernels.matryoshka_info_nce`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..types import Gradients, Ids, Needs, Options, Upstream
from .blocks import compute_dtype, row_blocks
from .info_nce import NORM_EPS, exponentials_, softmax_minus_positives_


def matryoshka_info_nce(
    queries: Tensor,
    columns: Tensor,
    temperature: Tensor,
    coefficients: Tensor | None,
    ids: Ids | None,
    widths: Sequence[int],
    weights: Sequence[float],
    positive_offset: int,
    normalize: bool,
    needs: Needs,
) -> tuple[Tensor, Gradients]:
    """The sum of `weight * InfoNCE` over the widths for every row, and the gradients of `coefficients @ losses`.

    The products of a prefix are the products of the next shorter prefix plus those of the segment between them. Let
    G_l be the derivative of the loss by the cosines of prefix l, P_l its products, and u_l, v_l the inverse norms of
    the prefixes on both sides. Then

        W_l = u_l G_l v_l,                                   U_s = sum of W_l over the prefixes that contain segment s
        grad_q[:, s] = U_s k[:, s] - q[:, s] sum_l u_l^2 (W_l P_l).sum(1)

    and likewise for k. So each segment needs three products in total, however many prefixes contain it.

    Args:
        queries: [N, D].
        columns: [C, D], keys and then other negatives.
        temperature: a scalar.
        coefficients: [N], or None if no gradients are wanted.
        ids: the ids of the queries and of the first columns.
        widths: widths of the prefixes, increasing.
        weights: weights of the prefixes' losses.
        positive_offset: the positive of row `i` is column `positive_offset + i`.
        normalize: compare the prefixes by cosine.
        needs: which gradients are wanted.

    Returns:
        Losses [N] and gradients; float64 if the rows are float64, float32 otherwise.

    Example:
        >>> import torch
        >>> from diffcse_kernels.reference import matryoshka_info_nce
        >>> from diffcse_kernels.types import Needs
        >>> rows, one, needs = torch.ones(3, 4), torch.tensor(1.0), Needs(False, False, False)
        >>> losses, _ = matryoshka_info_nce(rows, rows, one, None, None, (2, 4), (1.0, 1.0), 0, True, needs)
        >>> losses.div(2).exp().round()  # in both prefixes three equal logits
        tensor([3., 3., 3.])
    """
    with torch.autocast(queries.device.type, enabled=False):
        dtype = compute_dtype(queries, columns)
        scale = temperature.to(dtype).reciprocal().reshape(())
        q, k = queries.to(dtype), columns.to(dtype)
        norms = inverse_norms(q, widths, normalize), inverse_norms(k, widths, normalize)
        options = Options(len(k), positive_offset, None, 0.0, normalize)
        if coefficients is None:
            needs = Needs(False, False, False)
        grad_q = q.new_zeros(q.shape) if needs.queries else None
        grad_k = k.new_zeros(k.shape) if needs.columns else None
        losses, radials_q, radials_k = q.new_zeros(len(q)), torch.zeros_like(norms[0]), torch.zeros_like(norms[1])
        for rows in row_blocks(len(q), len(k) * dtype.itemsize * (len(widths) + 3)):
            found = _Prefixes(q[rows], k, norms[0][:, rows], norms[1], widths)
            slopes = []
            for number, weight in enumerate(weights):
                logits = found.cosines(number).mul_(scale)
                block, of_rows, *_ = exponentials_(logits, rows, scale, ids, options)
                losses[rows] += weight * of_rows
                if coefficients is None or not any(needs):
                    continue
                upstream = Upstream(weight * coefficients)
                logits.mul_(softmax_minus_positives_(block, rows, scale, upstream, positive_offset)[:, None])
                slopes.append(logits)
                radials = found.weights_(number, logits)
                radials_q[number, rows] = radials.sum(dim=1)
                radials_k[number] += radials.sum(dim=0)
            _add_products_(slopes, rows, q, k, widths, grad_q, grad_k)
        moment = radials_q.sum()
        if normalize:
            subtract_radial_parts_(grad_q, q, norms[0], radials_q, widths)
            subtract_radial_parts_(grad_k, k, norms[1], radials_k, widths)
    return losses, Gradients(grad_q, grad_k, -moment * scale if needs.temperature else None)


class _Prefixes:
    """The products of a block of rows with all columns, accumulated segment by segment."""

    def __init__(self, q: Tensor, k: Tensor, q_inverse: Tensor, k_inverse: Tensor, widths: Sequence[int]) -> None:
        self.q, self.k, self.q_inverse, self.k_inverse = q, k, q_inverse, k_inverse
        self.segments = segments(widths)
        self.products = q.new_zeros(len(q), len(k))

    def cosines(self, number: int) -> Tensor:
        """The cosines [n, C] of prefix `number`; must be called for the prefixes in order."""
        here = self.segments[number]
        self.products.addmm_(self.q[:, here], self.k[:, here].T)
        return (self.products * self.q_inverse[number, :, None]).mul_(self.k_inverse[number])

    def weights_(self, number: int, slopes: Tensor) -> Tensor:
        """Turn derivatives by cosines into derivatives by products, in place; return them times the products."""
        slopes.mul_(self.q_inverse[number, :, None]).mul_(self.k_inverse[number])
        return slopes * self.products


def segments(widths: Sequence[int]) -> list[slice]:
    """The slices between the ends of consecutive prefixes."""
    return [slice(start, end) for start, end in zip([0, *widths], widths, strict=False)]


def inverse_norms(rows: Tensor, widths: Sequence[int], normalize: bool) -> Tensor:
    """Inverse norms of the prefixes: 0 for a prefix without a direction, and 1 everywhere for dot products.

    They are [prefixes, N] of float32 (float64 for float64 rows).
    """
    dtype = compute_dtype(rows)
    if not normalize:
        return rows.new_ones(len(widths), len(rows), dtype=dtype)
    norms = torch.stack([torch.linalg.vector_norm(rows[:, :width], dim=1, dtype=dtype) for width in widths])
    return norms.reciprocal().masked_fill_(norms <= NORM_EPS, 0)


def _add_products_(
    slopes: list[Tensor],
    rows: slice,
    q: Tensor,
    k: Tensor,
    widths: Sequence[int],
    grad_q: Tensor | None,
    grad_k: Tensor | None,
) -> None:
    """Add the products of a block of rows to the gradients.

    A segment's slopes are the sum over the prefixes that contain it, so the sum grows from the last segment backwards.
    """
    for here in reversed(segments(widths)):
        if not slopes:
            return
        total = slopes.pop()
        if grad_q is not None:
            grad_q[rows, here] = total @ k[:, here]
        if grad_k is not None:
            grad_k[:, here].addmm_(total.T, q[rows, here])
        if slopes:
            slopes[-1] += total


def subtract_radial_parts_(
    gradient: Tensor | None, rows: Tensor, norms: Tensor, radials: Tensor, widths: Sequence[int]
) -> None:
    """gradient[:, s] -= rows[:, s] * (norms**2 * radials) summed over the prefixes that contain segment s.

    Args:
        gradient: [N, D].
        rows: [N, D].
        norms: [prefixes, N], inverse norms.
        radials: [prefixes, N], sums of the derivative by the cosine times the cosine.
        widths: widths of the prefixes.
    """
    if gradient is None:
        return
    factors = (norms.square() * radials).flip(0).cumsum(dim=0).flip(0)
    for here, factor in zip(segments(widths), factors, strict=True):
        gradient[:, here].addcmul_(rows[:, here].to(gradient.dtype), factor[:, None], value=-1)
