"""The sizes from which the Triton kernels are faster than the reference; `impl="auto"` uses them.

`MEASURED` holds one row a device class, as `python -m diffcse_kernels.benchmark crossovers` prints it on that device.
No device has been measured yet, so `CONSERVATIVE` holds everywhere: sizes at which the reference reads and writes
so much more memory than the kernel that it cannot be the faster one.
"""

from __future__ import annotations

import torch

# the unit of each number: what the function's work is counted in
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
    """The smallest size, in the function's unit, at which "auto" takes Triton on this device."""
    return MEASURED.get(device_class(device), CONSERVATIVE)[function]


def device_class(device: torch.device) -> str:
    """Devices that share a row: the architecture of NVIDIA's ("sm_90") and of AMD's ("gfx942")."""
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return str(properties.gcnArchName).split(":")[0]
    return f"sm_{properties.major}{properties.minor}"
