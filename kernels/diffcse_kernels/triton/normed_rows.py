"""Embeddings in the form that the kernels read."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..reference.info_nce import NORM_EPS


class Rows(NamedTuple):
    """Embeddings and the inverses of their norms."""

    values: Tensor
    """[N, D], contiguous."""
    inverse_norms: Tensor
    """[N] float32; 0 for a row too short to have a direction; all 1 if rows are compared by dot product."""

    @classmethod
    def of(cls, values: Tensor, normalize: bool) -> Rows:
        values = values.contiguous()
        if not normalize:
            return cls(values, values.new_ones(len(values), dtype=torch.float32))
        norms = torch.linalg.vector_norm(values, dim=1, dtype=torch.float32)
        return cls(values, norms.reciprocal().masked_fill_(norms <= NORM_EPS, 0.0))

    @classmethod
    def both(cls, queries: Tensor, columns: Tensor, normalize: bool) -> tuple[Rows, Rows]:
        """Both sides, in the common dtype that holds the numbers of both, ready to be multiplied with each other."""
        dtype = torch.promote_types(queries.dtype, columns.dtype)
        return cls.of(queries.to(dtype), normalize), cls.of(columns.to(dtype), normalize)
