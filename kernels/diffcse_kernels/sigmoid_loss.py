"""The sigmoid loss of SigLIP (Zhai et al., 2023) without the similarity matrix."""

from __future__ import annotations

from torch import Tensor

from .arguments import check_reduction, check_rows, check_temperature, one_number
from .columns import join_ids
from .implementations import resolve
from .loss_operator import loss_operator
from .reference.blocks import compute_dtype
from .types import NegativeSet, Reduction, SigmoidNeeds

__all__ = ["sigmoid_loss"]

_losses = loss_operator("sigmoid_loss", SigmoidNeeds, "SymInt positive_offset, bool normalize")


def sigmoid_loss(
    queries: Tensor,
    keys: Tensor,
    temperature: float | Tensor = 0.1,
    bias: float | Tensor = -10.0,
    *,
    positive_offset: int = 0,
    normalize: bool = True,
    query_ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    reduction: Reduction = "mean",
    impl: str = "auto",
) -> Tensor:
    """Binary cross-entropy of "this key belongs to this query", over all pairs.

    With the defaults and z = 2 * torch.eye(len(queries)) - 1 it equals

        -F.logsigmoid(z * (F.normalize(queries) @ F.normalize(keys).T / temperature + bias)).sum() / len(queries)

    but neither the similarities nor their gradient ever exist for all rows at once. Pairs do not depend on each other,
    so the losses of several blocks of keys add up. A nearly certain pair keeps its small loss and gradient.

    Precision, autocast and derivatives are as in `info_nce`.

    Source: section 3.2 and algorithm 1 of Zhai et al., 2023 (arXiv 2303.15343).

    Args:
        queries: [N, D].
        keys: [M, D]. The positive of row `i` is key `positive_offset + i`; the others are its negatives.
        temperature: a positive number, or a tensor of one element, which then gets a gradient. A tensor's value is not
            checked, because that would wait for the device. SigLIP learns the logarithm of its reciprocal.
        bias: added to every logit; a number, or a tensor of one element, which then gets a gradient.
        positive_offset: index of the key that is the positive of this caller's row 0.
        normalize: True compares by cosine (0 for a row whose norm is at most 1e-12), False by dot product.
        query_ids: [N] or [N, C] integers. A pair is left out if its key shares an id with the row,
            `(query_ids[i] == key_ids[j]).any()`, and is not the row's own positive.
        key_ids: [M] or [M, C] integers, required with `query_ids`.
        reduction: "mean" divides the sum over all pairs by N, as SigLIP does; "sum" omits the division; "none"
            returns the sums of the rows, [N]. "mean" and "sum" compute the gradients during the forward pass; "none"
            computes the similarities again in backward.
        impl: "auto", "triton" or "reference".

    Returns:
        The loss, float32 (float64 for float64 inputs).

    Raises:
        ValueError: shapes or options that do not fit together, or an implementation that cannot run here.

    Example:
        >>> import torch
        >>> from torch.nn import functional as F
        >>> from diffcse_kernels import sigmoid_loss
        >>> queries = torch.tensor([[1.0, 0.0], [1.0, 1.0]], requires_grad=True)
        >>> keys = torch.tensor([[2.0, 1.0], [0.0, 3.0]])
        >>> loss = sigmoid_loss(queries, keys, temperature=0.5, bias=-1.0)
        >>> loss.backward()
        >>> logits = F.normalize(queries) @ F.normalize(keys).T / 0.5 - 1.0
        >>> torch.allclose(loss, -F.logsigmoid((2 * torch.eye(2) - 1) * logits).sum() / 2)
        True
    """
    check_temperature(temperature)
    check_rows(queries, keys, positive_offset)
    ids = join_ids(queries, query_ids, {"keys": NegativeSet(keys, key_ids)})
    check_reduction(reduction)
    dtype = compute_dtype(queries, keys)
    impl = resolve(impl, "sigmoid_loss", len(queries) * len(keys), queries.device, dtype)
    factor = 1 / max(1, len(queries)) if reduction == "mean" else 1.0
    coefficients = None if reduction == "none" else queries.new_full(queries.shape[:1], factor, dtype=dtype)
    numbers = one_number("temperature", temperature, queries, dtype), one_number("bias", bias, queries, dtype)
    return _losses((queries, keys, *numbers), coefficients, ids, positive_offset, normalize, impl)
