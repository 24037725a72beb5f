"""The versions and the machine that a number was measured with. Every result file and checkpoint contains them."""

from __future__ import annotations

import hashlib
import importlib
import os
import platform
import socket
from collections.abc import Mapping
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
    """Versions and machine, JSON-serialisable, without names of persons, hosts or paths."""
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
    """12 hexadecimal digits that change with the sources of this project or the versions of its dependencies."""
    digest = hashlib.sha256()
    for package in ("diffcse_scale", "diffcse_kernels"):
        (folder,) = importlib.import_module(package).__path__
        for source in sorted(Path(folder).rglob("*.py")):
            digest.update(source.relative_to(folder).as_posix().encode() + source.read_bytes())
    digest.update(repr([(name, version(name)) for name in PACKAGES]).encode())
    return digest.hexdigest()[:12]


def version(package: str) -> str | None:
    """Version of an installed distribution; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """The processor's marketing name. Only on Linux it must be read from a file, because `platform` lacks it there."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def native_bfloat16(device: torch.device) -> bool:
    """Whether an accelerator has native bfloat16. V100-class cards emulate it slowly. False for CPUs."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "xpu"


def host_name() -> str:
    """This machine's name, or SLURM's node name if set, because several SLURM nodes may be one machine."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def threads_asked_for(environ: Mapping[str, str] = os.environ) -> int:
    """Number of threads in OMP_NUM_THREADS; 0 if it has none.

    Like OpenMP, this takes the first of several numbers (`4,2`) and ignores other values. An empty value comes from
    `OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK` outside of a job.
    """
    first = environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isascii() and first.isdigit() else 0
