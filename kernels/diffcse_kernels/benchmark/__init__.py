"""Benchmark the functions' time, memory and error against every installed alternative.

python -m diffcse_kernels.benchmark all --output runs/kernels
python -m diffcse_kernels.benchmark info-nce --sizes 8192 65536 --widths 768 --dtypes bf16
python -m diffcse_kernels.benchmark crossovers
python -m diffcse_kernels.benchmark plot runs/kernels/kernels.csv
"""

from __future__ import annotations

from .command import main

__all__ = ["main"]
