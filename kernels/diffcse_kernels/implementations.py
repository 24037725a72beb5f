"""Which implementations can run here, and which one `impl="auto"` means."""

from __future__ import annotations

import importlib.util
import os
from types import ModuleType

import torch

from .crossovers import triton_from

IMPLEMENTATIONS = ("auto", "triton", "reference")


def resolve(impl: str, function: str, work: int, device: torch.device, dtype: torch.dtype) -> str:
    """The implementation to run: "triton" or "reference".

    Args:
        impl: "auto", "triton" or "reference".
        function: name of the public function, a row of `crossovers`.
        work: its size in the unit that `crossovers` gives for this function.
        device: where the inputs are.
        dtype: what the function computes in; float64 is the reference's alone.

    Raises:
        ValueError: `impl` is unknown, or cannot run on this device, in this dtype or without Triton.
    """
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl must be one of {', '.join(map(repr, IMPLEMENTATIONS))}, not {impl!r}")
    if impl == "reference":
        return impl
    obstacle = _obstacle(device, dtype)
    if impl == "triton":
        if obstacle:
            raise ValueError(f"impl='triton' {obstacle}; impl='reference' runs everywhere")
        return impl
    if obstacle or device.type != "cuda":
        return "reference"
    return "triton" if work >= triton_from(function, device) else "reference"


def implementation(impl: str, module: str) -> ModuleType:
    """The module of that name for "triton" or "reference"; Triton's are imported by the first call that needs one."""
    return importlib.import_module(f".{impl}.{module}", __package__)


def interpreted() -> bool:
    """Whether Triton runs its kernels in Python, on CPU tensors, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the Triton kernels cannot take these inputs."""
    if importlib.util.find_spec("triton") is None:
        return "needs the package triton, which is not installed"
    if dtype == torch.float64:
        return "does not compute in float64"
    if device.type != "cuda" and not interpreted():
        return f"needs a GPU, and the inputs are on {device.type!r} (TRITON_INTERPRET=1 runs it in Python, for tests)"
    return None
