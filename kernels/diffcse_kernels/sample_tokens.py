"""A vocabulary head that samples token ids directly from hidden states, without the logits of all rows."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .arguments import check_matrices
from .counter import signed_seed
from .implementations import implementation, resolve
from .reference.blocks import compute_dtype

__all__ = ["sample_tokens"]


def sample_tokens(
    hidden: Tensor,
    embedding: Tensor,
    bias: Tensor | None,
    positions: Tensor,
    *,
    seed: int,
    temperature: float = 1.0,
    forbidden: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """Draw one token per row from softmax((hidden @ embedding.T + bias) / temperature).

    Row `i` uses one uniform number, `counter_uniform(seed, positions[i])`, and inverts its cumulative
    distribution there. Nothing else is random: the token depends on the seed, the row's position and the
    row's hidden state, not on the other rows of the call. The uniform number is reproducible to the bit. So are the
    logits, because every product has the same number of rows, however many rows a call has. Devices, libraries and
    implementations round products differently. Between them a token can change only if its number lies within
    rounding of a step of the distribution.

    float64 inputs are computed in float64, all others in float32 (also under autocast). The ids have no gradient,
    even if the inputs require one.

    Source: the generator of ELECTRA (Clark et al., 2020, arXiv 2003.10555, section 2) samples from its softmax like
    this.

    Args:
        hidden: [T, D], the states before the vocabulary head's last product.
        embedding: [V, D].
        bias: [V] or None.
        positions: [T], int64: a number that identifies each row in the whole run.
        seed: any integer.
        temperature: 0 gives the most probable token.
        forbidden: [V], bool: True at the tokens that are never drawn. At least one token must be allowed. This is
            checked only on a CPU, because on a GPU the check would wait for the device.
        impl: "auto", "triton" or "reference".

    Returns:
        ids: [T], int64.

    Raises:
        ValueError: shapes, dtypes or options that do not fit together, or an implementation that cannot run here.

    Example:
        >>> import torch
        >>> from diffcse_kernels import sample_tokens
        >>> hidden, embedding = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.eye(2)
        >>> positions = torch.tensor([10, 11])  # of the rows, in the whole run
        >>> sample_tokens(hidden, embedding, None, positions, seed=1, temperature=0)
        tensor([0, 1])
        >>> first = sample_tokens(hidden, embedding, None, positions, seed=1)
        >>> torch.equal(sample_tokens(hidden[1:], embedding, None, positions[1:], seed=1), first[1:])
        True
    """
    check_matrices(hidden=hidden, embedding=embedding)
    for name, values in (("bias", bias), ("forbidden", forbidden)):
        if values is not None and values.shape != embedding.shape[:1]:
            raise ValueError(f"{name} must be [{len(embedding)}], not {list(values.shape)}")
    if positions.shape != hidden.shape[:1] or positions.dtype != torch.int64:
        raise ValueError(
            f"positions must be [{len(hidden)}] of int64, not {list(positions.shape)} of {positions.dtype}"
        )
    if forbidden is not None and forbidden.dtype != torch.bool:
        raise ValueError(f"forbidden must be bool, not {forbidden.dtype}")
    if not (temperature >= 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be 0 or a positive finite number, not {temperature}")
    work = len(hidden) * len(embedding)
    impl = resolve(impl, "sample_tokens", work, hidden.device, compute_dtype(hidden, embedding))
    return _sample_tokens(hidden, embedding, bias, positions, signed_seed(seed), temperature, forbidden, impl)


@torch.library.custom_op("diffcse_kernels::sample_tokens", mutates_args=())
def _sample_tokens(
    hidden: Tensor,
    embedding: Tensor,
    bias: Tensor | None,
    positions: Tensor,
    seed: int,
    temperature: float,
    forbidden: Tensor | None,
    impl: str,
) -> Tensor:
    if forbidden is not None and forbidden.device.type == "cpu" and bool(forbidden.all()):
        raise ValueError("forbidden excludes every token of the vocabulary")
    ids: Tensor = implementation(impl, "sample_tokens").sample_tokens(
        hidden, embedding, bias, positions, seed=seed, temperature=temperature, forbidden=forbidden
    )
    return ids


@_sample_tokens.register_fake
def _(
    hidden: Tensor,
    embedding: Tensor,
    bias: Tensor | None,
    positions: Tensor,
    seed: int,
    temperature: float,
    forbidden: Tensor | None,
    impl: str,
) -> Tensor:
    return torch.empty_like(positions)
