"""Losses and sampling for contrastive training that never build their largest matrix.

Every function takes `impl="auto" | "triton" | "reference"`. The subpackage `reference` defines what each one computes.
"""

from __future__ import annotations

from .counter import counter_uniform
from .info_nce import info_nce
from .matryoshka_info_nce import matryoshka_info_nce
from .replaced_token_bce import replaced_token_bce
from .sample_tokens import sample_tokens
from .sigmoid_loss import sigmoid_loss
from .types import InfoNCEStats, NegativeSet, RTDCounts

__version__ = "0.2.0"

__all__ = [
    "InfoNCEStats",
    "NegativeSet",
    "RTDCounts",
    "counter_uniform",
    "info_nce",
    "matryoshka_info_nce",
    "replaced_token_bce",
    "sample_tokens",
    "sigmoid_loss",
]
