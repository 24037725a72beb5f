"""Measures the device's rate of matrix products."""

from __future__ import annotations

import time

import torch


def matmul_rate(dtype: torch.dtype, device: torch.device, seconds: float = 2.0) -> float:
    """Floating-point operations per second in a large square matrix product."""
    size = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    for _ in range(2):
        left @ right
    calls, elapsed = 0, 0.0
    while elapsed < seconds:
        start = time.perf_counter()
        for _ in range(4):
            left @ right
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elapsed += time.perf_counter() - start
        calls += 4
    return 2 * size**3 * calls / elapsed
