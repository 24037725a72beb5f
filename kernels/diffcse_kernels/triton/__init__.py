"""The three functions as Triton kernels, for GPUs; Triton's interpreter runs them on CPUs, for tests.

Imported only when a call has chosen them, because Triton need not be installed.
"""

from __future__ import annotations

from ..implementations import interpreted
from .interpreter import make_bfloat16_right

if interpreted():
    make_bfloat16_right()
