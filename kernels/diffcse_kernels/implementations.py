"""Which implementations can run here, and which one `impl="auto"` means."""

from __future__ import annotations

import importlib.util
import os
import warnings
from functools import cache
from types import ModuleType

import torch

from .crossovers import triton_from

IMPLEMENTATIONS = ("auto", "triton", "reference")
OLDEST = (8, 0)  # the first compute capability whose tensor cores take bfloat16


def resolve(impl: str, function: str, work: int, device: torch.device, dtype: torch.dtype) -> str:
    """The implementation to run: "triton" or "reference".

    If "auto" would choose Triton but Triton does not work, it warns once and uses the reference.

    Args:
        impl: "auto", "triton" or "reference".
        function: name of the public function, a row of `crossovers`.
        work: problem size, in the unit that `crossovers` gives for this function.
        device: where the inputs are.
        dtype: what the function computes in. Only the reference computes in float64.

    Raises:
        ValueError: `impl` is unknown, or cannot run on this device or in this dtype, or Triton does not work here.
    """
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl must be one of {', '.join(map(repr, IMPLEMENTATIONS))}, not {impl!r}")
    if impl == "reference":
        return impl
    obstacle = _obstacle(device, dtype)
    on_gpu = device.type == "cuda"
    if impl == "auto" and (obstacle or not on_gpu or work < triton_from(function, device)):
        return "reference"
    failure = failed_trial(device, impl == "auto") if on_gpu and not obstacle else None
    if impl == "triton" and (obstacle or failure):
        raise ValueError(f"impl='triton' {obstacle or failure}; impl='reference' runs everywhere")
    return "reference" if failure else "triton"


def implementation(impl: str, module: str) -> ModuleType:
    """The module `module` of "triton" or "reference". Triton's modules are imported when a call first needs them."""
    return importlib.import_module(f".{impl}.{module}", __package__)


def interpreted() -> bool:
    """Whether Triton interprets its kernels in Python, on CPU tensors, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the Triton kernels cannot take these inputs, or None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "needs the package triton, which is not installed"
    if dtype == torch.float64:
        return "does not compute in float64"
    if device.type != "cuda" and not interpreted():
        return f"needs a GPU, and the inputs are on {device.type!r} (TRITON_INTERPRET=1 runs it in Python, for tests)"
    return None


@torch.compiler.assume_constant_result  # torch.compile must use the answer, not trace the trial
def failed_trial(device: torch.device, warn: bool = False) -> str | None:
    """Why Triton's kernels would fail on this GPU, or None if they work; tried once per process by a launch.

    Args:
        warn: warn once if they fail.
    """
    failure = _launch_once(device)
    if failure and warn:
        _warn_once(f"Triton's kernels are left out, for impl='triton' {failure}; the reference runs, which is slower.")
    return failure


@cache
def _launch_once(device: torch.device) -> str | None:
    if not torch.version.hip and (capability := torch.cuda.get_device_capability(device)) < OLDEST:
        needed, there = (".".join(map(str, version)) for version in (OLDEST, capability))
        return f"needs a GPU of compute capability {needed}, and {torch.cuda.get_device_name(device)} has {there}"
    try:
        right = implementation("triton", "trial").launch(device)
    except Exception as error:  # compilers, linkers, drivers and LLVM raise exceptions of their own
        reason = " ".join(str(error).split()) or type(error).__name__
        return f"failed on {device} (it needs a C compiler and the headers of Python): {reason}"
    return None if right else f"computes wrong numbers on {device}"


@cache
def _warn_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=5)
