"""How long does the kernels' reference take on a CPU? The installed `diffcse_kernels` is measured.

    python -m studies.reference_speed
    PYTHONPATH=path/to/a/checkout/kernels python -m studies.reference_speed      # of another commit

Prints one line per size: the median milliseconds of InfoNCE, forward and backward. To compare two commits, measure them
in turns, on an idle machine.
"""

from __future__ import annotations

import statistics
import time

import diffcse_kernels
import torch

SIZES = ((1024, 768, "float32"), (4096, 768, "float32"), (8192, 256, "float32"), (4096, 768, "bfloat16"))
SECONDS, LEAST = 4.0, 5  # for each size: seconds, and the least number of repetitions


def milliseconds(rows: int, width: int, dtype: torch.dtype) -> float:
    """Median milliseconds for one size."""
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(rows, width, generator=generator)
    keys = (queries + torch.randn(rows, width, generator=generator)).to(dtype).requires_grad_()
    queries = queries.to(dtype).requires_grad_()
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(times) < LEAST + 2 or time.perf_counter() < end:
        queries.grad = keys.grad = None
        start = time.perf_counter()
        diffcse_kernels.info_nce(queries, keys, 0.05, impl="reference").backward()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times[2:])


if __name__ == "__main__":
    print(diffcse_kernels.__file__)
    for rows, width, name in SIZES:
        print(f"{rows} x {width} {name}: {milliseconds(rows, width, getattr(torch, name)):.1f} ms")
