"""Versions and machine with which a number was measured. Every result file and checkpoint contains them."""

from __future__ import annotations

import hashlib
import importlib
import os
import platform
import socket
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PACKAGES = (
    "diffcse-scale",
    "torch",
    "transformers",
    "tokenizers",
    "deepspeed",
    "peft",
    "bitsandbytes",
    "datasets",
    "sentence-transformers",
    "numpy",
    "scipy",
)


def environment() -> dict[str, Any]:
    """Versions and machine, JSON-serialisable; nothing that names a person, a host or a path."""
    import torch

    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "devices": devices,
        "cuda": torch.version.cuda,
        "packages": {name: version(name) for name in PACKAGES},
    }


def code_version() -> str:
    """12 hexadecimal digits that change with the sources of this project and the versions of what it stands on."""
    digest = hashlib.sha256()
    for package in ("diffcse_scale", "diffcse_kernels"):
        (folder,) = importlib.import_module(package).__path__
        for source in sorted(Path(folder).rglob("*.py")):
            digest.update(source.relative_to(folder).as_posix().encode() + source.read_bytes())
    digest.update(repr([(name, version(name)) for name in PACKAGES]).encode())
    return digest.hexdigest()[:12]


def version(package: str) -> str | None:
    """Of an installed distribution; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """The processor's marketing name; Linux is the only system whose standard library does not know it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def native_bfloat16(device: torch.device) -> bool:
    """Whether an accelerator computes in bfloat16 itself; V100-class cards only emulate it, slowly. False for CPUs."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "xpu"


def host_name() -> str:
    """This machine's name, SLURM's where it has given one: several of its nodes may be one machine."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()
