"""The functions as Triton kernels, for GPUs; Triton's interpreter runs them on CPUs, for tests.

This package is imported only when a call uses it, because Triton is optional.
"""

from __future__ import annotations

from ..implementations import interpreted
from .interpreter import make_bfloat16_right

if interpreted():
    make_bfloat16_right()
