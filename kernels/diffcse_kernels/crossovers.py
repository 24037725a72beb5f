"""The sizes from which the Triton kernels are faster than the reference; `impl="auto"` uses them.

`MEASURED` holds one row per device class, as `python -m diffcse_kernels.benchmark crossovers` prints it on that device.
No device has been measured yet, so `CONSERVATIVE` applies everywhere. At these sizes the reference reads and writes
so much more memory than the kernel that it cannot be faster.
"""

from __future__ import annotations

import torch

# the unit in which each function's size is counted
UNITS = {
    "info_nce": "queries x keys",
    "replaced_token_bce": "tokens x width",
    "sample_tokens": "tokens x vocabulary",
    "sigmoid_loss": "queries x keys",
}
CONSERVATIVE = {
    "info_nce": 4096 * 4096,
    "replaced_token_bce": 32_768 * 768,
    "sample_tokens": 4096 * 30_000,
    "sigmoid_loss": 4096 * 4096,
}
MEASURED: dict[str, dict[str, int]] = {}  # device class, as `device_class` names it -> function -> size


def triton_from(function: str, device: torch.device) -> int:
    """The smallest size, in the function's unit, at which "auto" uses Triton on this device."""
    return MEASURED.get(device_class(device), CONSERVATIVE)[function]


def device_class(device: torch.device) -> str:
    """The architecture, which names a row of `MEASURED`: "sm_90" for NVIDIA, "gfx942" for AMD."""
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return str(properties.gcnArchName).split(":")[0]
    return f"sm_{properties.major}{properties.minor}"
