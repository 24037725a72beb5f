"""Reference implementation of `diffcse_kernels.sample_tokens`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..counter import counter_uniform
from .blocks import compute_dtype, rows_a_block

SAMPLING_ROWS = 64  # enough rows to use the processor well, and few enough to waste little on a short call


@torch.no_grad()
def sample_tokens(
    hidden: Tensor,
    embedding: Tensor,
    bias: Tensor | None,
    positions: Tensor,
    *,
    seed: int,
    temperature: float = 1.0,
    forbidden: Tensor | None = None,
) -> Tensor:
    """`diffcse_kernels.sample_tokens`.

    A row's logits must not depend on the other rows of the call, but libraries change the order of summation with the
    shape of a product. Therefore all blocks have the same number of rows; the last block is padded.

    Args:
        hidden: [T, D].
        embedding: [V, D].
        bias: [V] or None.
        positions: [T], int64.
        seed: any integer.
        temperature: 0 gives the most probable token.
        forbidden: [V], bool: True at the tokens that are never drawn.

    Returns:
        ids: [T], int64.

    Example:
        >>> import torch
        >>> from diffcse_kernels.reference import sample_tokens
        >>> sample_tokens(torch.eye(2), torch.eye(2), None, torch.arange(2), seed=1, temperature=0)
        tensor([0, 1])
    """
    dtype = compute_dtype(hidden, embedding)
    vocabulary = embedding.to(dtype).T
    offsets = logit_offsets(embedding, bias, forbidden, dtype)
    bytes_a_logit = offsets.element_size() + 8  # 8 for its cumulative probability
    height = min(SAMPLING_ROWS, rows_a_block(len(offsets) * bytes_a_logit))
    uniform = counter_uniform(seed, positions)
    ids = torch.empty_like(positions)
    with torch.autocast(hidden.device.type, enabled=False):
        for start in range(0, len(hidden), height):
            rows = slice(start, start + height)
            block = hidden[rows].to(dtype)
            padded = F.pad(block, (0, 0, 0, height - len(block)))
            logits = torch.addmm(offsets, padded, vocabulary)[: len(block)]
            if temperature == 0:
                ids[rows] = logits.argmax(dim=1)
            else:
                ids[rows] = _invert_distribution(logits, uniform[rows], temperature)
    return ids


def logit_offsets(embedding: Tensor, bias: Tensor | None, forbidden: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The offsets [V] to add to the products: the bias, and minus infinity at the tokens that are never drawn."""
    offsets = embedding.new_zeros(len(embedding), dtype=dtype) if bias is None else bias.to(dtype)
    return offsets if forbidden is None else offsets.masked_fill(forbidden, -torch.inf)


def _invert_distribution(logits: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """The first token whose cumulative probability exceeds the row's uniform number; `logits` is overwritten.

    A token with zero probability is never the first to exceed a number. The last cumulative value exceeds every
    target, because a uniform number is at most 1 - 2**-53.
    """
    logits.sub_(logits.amax(dim=1, keepdim=True)).div_(temperature).exp_()
    cumulative = logits.cumsum(dim=1, dtype=torch.float64)
    return torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)[:, 0]
