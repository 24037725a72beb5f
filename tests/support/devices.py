"""What the trainer's tests run on: CPUs, or with DIFFCSE_TEST_DEVICE=cuda this machine's GPUs (`make test-gpu`).

A test marked `device` runs on either; all others are for CPUs. torch must not be imported before `VARIABLES` are set.
"""

from __future__ import annotations

import os

ON_GPU = os.environ.get("DIFFCSE_TEST_DEVICE", "cpu") == "cuda"
# for this process and all that it starts
VARIABLES = (
    # asking whether there is a device must not make a context, which a forked process could not use
    {"DS_ACCELERATOR": "cuda", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    if ON_GPU
    else {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
)


def refusal() -> str | None:
    """Why nothing can be tested here, in one sentence."""
    import torch

    asked = os.environ.get("DIFFCSE_TEST_DEVICE", "cpu")
    if asked not in ("cpu", "cuda"):
        return f"DIFFCSE_TEST_DEVICE is {asked}; it may be cpu or cuda."
    if ON_GPU and not torch.cuda.is_available():
        return "DIFFCSE_TEST_DEVICE is cuda, and torch finds no GPU here; `diffcse-scale doctor` says why."
    return None


def most_ranks() -> int:
    """How many can be started: as many as there are GPUs, and any number on CPUs."""
    import torch

    return torch.cuda.device_count() if ON_GPU else 64


def two_ranks() -> int:
    """Two, or one where there is one GPU."""
    return min(2, most_ranks())


def tolerance(on_cpu: float, on_gpu: float) -> float:
    """Of a comparison. On GPUs the shipped configurations compute in bfloat16, and sums are added in any order."""
    return on_gpu if ON_GPU else on_cpu
