"""Losses and sampling for contrastive training that never build their largest matrix.

Every function takes `impl="auto" | "triton" | "reference"`; the subpackage `reference` defines what it computes.
"""

from __future__ import annotations

from .counter import counter_uniform
from .info_nce import InfoNCEStats, info_nce
from .replaced_token_bce import RTDCounts, replaced_token_bce
from .token_sampling import sample_tokens

__all__ = [
    "InfoNCEStats",
    "RTDCounts",
    "counter_uniform",
    "info_nce",
    "replaced_token_bce",
    "sample_tokens",
]
