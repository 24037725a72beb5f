"""InfoNCE on a GPU: a Triton kernel computes strips of exponentials, and the vendor's library multiplies with them.

Let s+ be the positive logit of row i, s_j its negatives, L their logsumexp and c_i the factor on its loss. Then

    loss_i   = softplus(L_i - s+_i)
    w_ij     = exp(s_j - shift_i)                              rounded to the dtype of the inputs
    f_i      = c_i scale exp(shift_i - s+_i - loss_i),   d_i = c_i scale sigmoid(L_i - s+_i)
    grad_q_i = f_i sum_j w_ij k_j - d_i k+_i             grad_k_j = sum_i w_ij f_i q_i - d_i q_i at i's positive

for a strip of rows at a time, 6 N M D FLOP in total. The positive is not in w, because its rounded value would not
cancel the term that is subtracted for it. The shift must be known before the sums. `similarity.row_shifts` can mostly
derive it from bounds; otherwise it first computes the rows' maxima (8 N M D FLOP).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..types import Contrast, Gradients, Ids, InfoNCEStats, Needs, Options, Upstream
from . import similarity
from .further_positives import Further, further_positives
from .masks import Masks
from .normed_rows import Rows
from .own_logits import with_margin
from .products import accumulate_, product_
from .row_gradients import finish_
from .similarity import Pair


def contrast(
    queries: Tensor,
    columns: Tensor,
    temperature: Tensor,
    upstream: Upstream | None,
    ids: Ids | None,
    options: Options,
    needs: Needs,
) -> Contrast:
    """`reference.contrast`."""
    with torch.cuda.device_of(queries), torch.autocast(queries.device.type, enabled=False):
        pair = Pair(
            *Rows.both(queries, columns, options.normalize),
            temperature.float().reciprocal().reshape(1),
            options.normalize,
            options.positive_offset,
            options.own_hard_negative,
            options.hard_negative_weight,
            Masks.of(ids, options, len(columns), queries),
        )
        if options.margin is not None:
            pair = with_margin(pair, options.margin)
        further = further_positives(pair) if options.multiple_positives else None
        gradients = Gradients(None, None, None)
        if upstream is not None and any(needs):
            logsumexp, positives, largest, gradients = _gradients(pair, upstream, further, needs)
        elif further is None:
            logsumexp, positives, largest = similarity.negatives_logsumexp(pair)
        else:
            logsumexp, positives, largest, *_ = further
        losses = F.softplus(logsumexp - positives)
        if further is not None:
            losses += further.above_mean
        stats = _stats(pair, options.num_keys, positives / pair.scale, positives > largest)
        return Contrast(losses, torch.logaddexp(logsumexp, positives), stats, gradients)


def _gradients(
    pair: Pair, upstream: Upstream, further: Further | None, needs: Needs
) -> tuple[Tensor, Tensor, Tensor, Gradients]:
    """The results of `similarity.negatives_logsumexp`, and the gradients for the given upstream gradients."""
    q, k, scale = pair.q, pair.k, pair.scale
    coefficients = upstream.losses.float()
    both = coefficients if upstream.logsumexp is None else coefficients + upstream.logsumexp.float()
    # float16 would lose small numbers, so stored values are relative to the largest value and rescaled at the end
    unit, unit_of_queries = similarity.unit_of_exponentials(pair), similarity.unit_of_queries(pair)
    size = torch.maximum(both.abs(), coefficients.abs()).amax().clamp_min(torch.finfo(torch.float32).tiny)
    relative = torch.ones_like(both)
    if further is None:
        shifts = similarity.row_shifts(pair)
        logsumexp, positives, largest = (torch.empty_like(shifts) for _ in range(3))
    else:
        logsumexp, positives, largest, shares, _ = further
        shifts = torch.logaddexp(logsumexp, positives)
    totals_q = torch.empty_like(q.values, dtype=torch.float32) if needs.queries or needs.temperature else None
    totals_k = torch.zeros_like(k.values, dtype=torch.float32) if needs.columns else None
    for rows in similarity.strips(pair):
        if further is None:
            weights, sums, largest[rows], positives[rows] = similarity.exponentials(pair, rows, shifts[rows], unit)
            logsumexp[rows] = sums.log() + shifts[rows]
            losses = F.softplus(logsumexp[rows] - positives[rows])
            exponents = (shifts[rows] - positives[rows] - losses).masked_fill_(sums == 0, -torch.inf)  # no negatives
            relative[rows] = both[rows] / size * exponents.exp()
        else:
            gains, pulls = both[rows] / size, coefficients[rows] * shares[rows] / size
            weights, *_ = similarity.exponentials(pair, rows, shifts[rows], unit, gains, pulls)
        if totals_q is not None:
            product_(totals_q[rows], weights, k.values)
        if totals_k is not None:
            factors = relative[rows] * q.inverse_norms[rows]
            accumulate_(totals_k, weights.T, similarity.weighted(q.values[rows], factors, unit_of_queries))
        del weights  # otherwise two strips would be alive while the next one is computed
    shared = size * scale / unit
    pulls = both * (logsumexp - positives).sigmoid() - (both - coefficients)
    if further is not None:
        pulls -= coefficients * (1 - shares)
    partners = slice(pair.positive, pair.positive + len(q.values))
    pulls = pulls * scale * q.inverse_norms * k.inverse_norms[partners]
    grad_temperature = None
    if totals_q is not None:
        factors = relative * shared * q.inverse_norms
        radials = finish_(totals_q, factors, q, k.values, pair.positive, pulls, pair.normalized)
        if needs.temperature:
            tiny = torch.finfo(torch.float32).tiny  # a row without a direction has an inverse norm of 0
            grad_temperature = -(radials / q.inverse_norms.clamp_min(tiny)).sum() * scale[0]
    if totals_k is not None:
        factors = (shared / unit_of_queries).expand(len(k.values))
        column_pulls = torch.zeros_like(k.inverse_norms)
        column_pulls[partners] = pulls
        finish_(totals_k, factors.contiguous(), k, q.values, -pair.positive, column_pulls, pair.normalized)
    grad_queries = totals_q if needs.queries else None
    return logsumexp, positives, largest, Gradients(grad_queries, totals_k, grad_temperature)


def _stats(pair: Pair, num_keys: int, positive_cosines: Tensor, is_right: Tensor) -> InfoNCEStats:
    """The statistics. The sum over all pairs is the product of the sums, so they need no matrix."""
    q_sum = _sum_of_rows(pair.q)
    k_sum = _sum_of_rows(Rows(pair.k.values[:num_keys], pair.k.inverse_norms[:num_keys]))
    negative_sum = q_sum @ k_sum - positive_cosines.sum()
    pairs = len(pair.q.values) * (num_keys - 1)
    negative_mean = negative_sum / pairs if pairs else torch.full_like(negative_sum, torch.nan)
    return InfoNCEStats(positive_cosines.mean(), negative_mean, is_right.float().mean())


def _sum_of_rows(rows: Rows) -> Tensor:
    """[D] float32: the sum of the normalised rows, computed in blocks to keep the float32 copies small."""
    total = rows.inverse_norms.new_zeros(rows.values.shape[1])
    for values, inverse_norms in zip(rows.values.split(16384), rows.inverse_norms.split(16384), strict=True):
        total += inverse_norms @ values.float()
    return total
