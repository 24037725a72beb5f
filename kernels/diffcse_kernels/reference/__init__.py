"""The functions in plain PyTorch: they define the results, and CPUs run them.

They work on blocks of rows. Their memory is therefore a byte budget and a few copies of the inputs, never the whole
matrix. The public functions describe and check the arguments.
"""

from __future__ import annotations

from .info_nce import contrast
from .matryoshka_info_nce import matryoshka_info_nce
from .replaced_token_bce import replaced_token_bce
from .sample_tokens import sample_tokens
from .sigmoid_loss import sigmoid_loss

__all__ = [
    "contrast",
    "matryoshka_info_nce",
    "replaced_token_bce",
    "sample_tokens",
    "sigmoid_loss",
]
