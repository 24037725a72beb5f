"""Reference implementation of `diffcse_kernels.sigmoid_loss`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..types import Ids, SigmoidGradients, SigmoidNeeds
from .blocks import compute_dtype, row_blocks
from .info_nce import normalize_backward_, normalized_rows
from .masks import bytes_a_logit, leave_out_

LINEAR_FROM = 40.0  # from here on softplus(x) equals x, also in float64


def sigmoid_loss(
    queries: Tensor,
    keys: Tensor,
    temperature: Tensor,
    bias: Tensor,
    coefficients: Tensor | None,
    ids: Ids | None,
    positive_offset: int,
    normalize: bool,
    needs: SigmoidNeeds,
) -> tuple[Tensor, SigmoidGradients]:
    """The loss of every row, and the gradients of `coefficients @ losses`.

    With s the sigmoid of a row's logits and e the one-hot vector of its positive, the gradients are
        grad_q_i  = coefficient_i * scale * (s_i - e_i) k
        grad_k   += coefficient_i * scale * (s_i - e_i)^T q_i

    Args:
        queries: [N, D].
        keys: [M, D].
        temperature: a scalar.
        bias: a scalar.
        coefficients: [N], or None if no gradients are wanted.
        ids: the ids of queries and keys; a pair that shares an id is left out.
        positive_offset: the positive of row `i` is key `positive_offset + i`.
        normalize: compare by cosine.
        needs: which gradients are wanted.

    Returns:
        Losses [N] and gradients; float64 if the rows are float64, float32 otherwise.

    Example:
        >>> import torch
        >>> from diffcse_kernels.reference import sigmoid_loss
        >>> from diffcse_kernels.types import SigmoidNeeds
        >>> rows, one, zero = torch.zeros(3, 2), torch.tensor(1.0), torch.tensor(0.0)
        >>> needs = SigmoidNeeds(False, False, False, False)
        >>> losses, _ = sigmoid_loss(rows, rows, one, zero, None, None, 0, True, needs)
        >>> losses.div(3).exp().round()  # three pairs a row, each of logit 0
        tensor([2., 2., 2.])
    """
    with torch.autocast(queries.device.type, enabled=False):
        dtype = compute_dtype(queries, keys)
        scale, offset = temperature.to(dtype).reciprocal().reshape(()), bias.to(dtype).reshape(())
        q, q_inverse = normalized_rows(queries.to(dtype), normalize)
        k, k_inverse = normalized_rows(keys.to(dtype), normalize)
        if coefficients is None:
            needs = SigmoidNeeds(False, False, False, False)
        losses, slope_sum = q.new_empty(len(q)), q.new_zeros(())
        grad_q = q.new_empty(q.shape) if needs.queries or needs.temperature else None
        grad_k = k.new_zeros(k.shape) if needs.keys else None
        for rows in row_blocks(len(q), len(k) * (dtype.itemsize + bytes_a_logit(dtype, ids, False))):
            logits = torch.addmm(offset, q[rows] * scale, k.T)
            losses[rows] = _slopes_(logits, rows, positive_offset, ids)
            if coefficients is None or not any(needs):
                continue
            logits.mul_(coefficients[rows, None])
            slope_sum += logits.sum()
            if grad_q is not None:
                torch.mm(logits, k, out=grad_q[rows]).mul_(scale)
            if grad_k is not None:
                grad_k.addmm_(logits.T, q[rows] * scale)
        moment = None if grad_q is None else torch.linalg.vecdot(q, grad_q).sum()
        for gradient, unit_rows, inverse_norms in ((grad_q, q, q_inverse), (grad_k, k, k_inverse)):
            if gradient is not None and inverse_norms is not None:
                normalize_backward_(gradient, unit_rows, inverse_norms)
    return losses, SigmoidGradients(
        grad_q if needs.queries else None,
        grad_k,
        -moment * scale if needs.temperature and moment is not None else None,
        slope_sum if needs.bias else None,
    )


def _slopes_(logits: Tensor, rows: slice, positive_offset: int, ids: Ids | None) -> Tensor:
    """Turn a block of logits into the derivatives of its losses, in place; return the loss of every row.

    Both are computed from the logit of a negative and from minus the logit of the positive. So neither is computed as
    1 minus a probability that is nearly 1.
    """
    positive_column = logits.diagonal(positive_offset + rows.start)[: len(logits)]
    positives = positive_column.clone()
    leave_out_(logits, rows, ids, None)  # minus infinity gives no loss and no slope
    positive_column.copy_(positives.neg_())
    losses = F.softplus(logits, threshold=LINEAR_FROM).sum(dim=1)
    logits.sigmoid_()
    positive_column.neg_()
    return losses
