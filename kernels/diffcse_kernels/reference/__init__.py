"""The three functions in plain PyTorch: their definition, and what CPUs run.

They work on blocks of rows, so that their memory is a byte budget and a few copies of the inputs, never the
matrix that they are about. Arguments are described and checked by the public functions.
"""

from __future__ import annotations

from .info_nce import contrast
from .replaced_token_bce import replaced_token_bce
from .sample_tokens import sample_tokens

__all__ = [
    "contrast",
    "replaced_token_bce",
    "sample_tokens",
]
