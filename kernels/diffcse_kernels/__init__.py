"""Losses and sampling for contrastive training that never build their largest matrix.

Every function takes `impl="auto" | "triton" | "reference"`; the subpackage `reference` defines what it computes.
"""

from __future__ import annotations

from .counter import counter_uniform
from .info_nce import info_nce
from .replaced_token_bce import replaced_token_bce
from .sample_tokens import sample_tokens
from .types import InfoNCEStats, RTDCounts

__version__ = "0.1.0"

__all__ = [
    "InfoNCEStats",
    "RTDCounts",
    "counter_uniform",
    "info_nce",
    "replaced_token_bce",
    "sample_tokens",
]
