"""Facts about a machine, collected once. The checks judge them."""

from __future__ import annotations

import logging
import os
import platform
import resource
import shutil
import socket
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch

from diffcse_scale.foundation.devices import device_error, device_files
from diffcse_scale.foundation.environment import PACKAGES, host_name, native_bfloat16, version
from diffcse_scale.foundation.paths import given_path
from diffcse_scale.rendezvous import interface_to

GIB = 2**30
# version 2 of Linux's control groups, and version 1
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True)
class Device:
    """An accelerator that torch can use. Sizes are in bytes."""

    name: str
    memory: int
    free: int
    capability: tuple[int, int]  # NVIDIA's numbers; AMD numbers differently
    bfloat16: bool


@dataclass(frozen=True)
class Volume:
    """A folder and its file system (that of the nearest existing parent if it does not exist). Sizes are in bytes."""

    path: Path
    system: str
    free: int
    writable: bool


@dataclass(frozen=True)
class Machine:
    """All facts that the checks use. Tests make their own with `dataclasses.replace`.

    Attributes:
        torch_build: `CUDA 13.0`, `ROCm 6.4` or `CPU`.
        torch_architectures: architectures that the build has programs for, such as `sm_90`.
        device_files: device files of the system's GPUs, whether torch can use them or not.
        device_error: why torch cannot use a GPU; None if it can.
        accelerator: the device that DeepSpeed trains on, such as `cuda`.
        operators: compiled operators that DeepSpeed was built with; it builds others at their first use.
        deepspeed_error: why DeepSpeed cannot be imported; None if it can.
        peers: whether every device can read the memory of every other.
        interfaces: network interfaces that are up, each with its IPv4 and IPv6 addresses.
        host_address: the address that this machine's own name resolves to.
        reached_by: the interface that reaches MASTER_ADDR, if that is set.
        limits: soft limits of this process by name; None is no limit.
        environ: environment variables of this process.
    """

    host: str
    system: str
    packages: Mapping[str, str | None]
    cores: int
    memory: int
    torch_build: str
    torch_architectures: tuple[str, ...]
    device_files: tuple[str, ...]
    driver: str | None
    device_error: str | None
    devices: tuple[Device, ...]
    peers: bool
    nccl: str | None
    triton: str | None
    c_compiler: str | None
    cxx_compiler: str | None
    python_h: bool
    accelerator: str | None
    operators: tuple[str, ...]
    deepspeed_error: str | None
    interfaces: Mapping[str, tuple[str, ...]]
    host_address: str | None
    reached_by: str | None
    infiniband: tuple[str, ...]
    shared_memory: Volume
    cache: Volume
    models: Volume
    output: Volume
    limits: Mapping[str, int | None]
    environ: Mapping[str, str] = field(repr=False)

    @property
    def nodes(self) -> int:
        """Number of nodes of this process's SLURM job; 1 without a job."""
        return int(self.environ.get("SLURM_JOB_NUM_NODES", "1"))


def look(output: Path, cache: Path, models: Path) -> Machine:
    """Collect the facts about this machine. Creates a context on each GPU.

    Args:
        output: folder for runs.
        cache: folder of tokenized corpora.
        models: folder of models from the Hub.
    """
    error = device_error()
    devices = () if error else tuple(map(_device, range(torch.cuda.device_count())))
    interfaces = _interfaces()
    accelerator, operators, deepspeed_error = _deepspeed()
    return Machine(
        host=host_name(),
        system=f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        packages={name: version(name) for name in PACKAGES},
        cores=len(os.sched_getaffinity(0)),
        memory=_memory(),
        torch_build=_torch_build(),
        torch_architectures=tuple(torch.cuda.get_arch_list()) if not error else (),
        device_files=tuple(device_files()),
        driver=_driver(Path("/proc/driver/nvidia/version")),
        device_error=error,
        devices=devices,
        peers=_all_peers(len(devices)),
        nccl=".".join(map(str, torch.cuda.nccl.version())) if not error and _has_nccl() else None,
        triton=version("triton") or version("pytorch-triton-rocm"),
        c_compiler=_program("CC", ("gcc", "clang", "cc")),
        cxx_compiler=_program("CXX", ("g++", "clang++", "c++")),
        python_h=Path(sysconfig.get_paths()["include"], "Python.h").is_file(),
        accelerator=accelerator,
        operators=operators,
        deepspeed_error=deepspeed_error,
        interfaces=interfaces,
        host_address=_resolved(socket.gethostname()),
        reached_by=interface_to(os.environ["MASTER_ADDR"]) if "MASTER_ADDR" in os.environ else None,
        infiniband=tuple(sorted(path.name for path in Path("/sys/class/infiniband").glob("*"))),
        shared_memory=volume(Path("/dev/shm")),
        cache=volume(cache),
        models=volume(models),
        output=volume(output),
        limits={
            name: None if (soft := resource.getrlimit(number)[0]) == resource.RLIM_INFINITY else soft
            for name, number in (
                ("open files", resource.RLIMIT_NOFILE),
                ("locked memory", resource.RLIMIT_MEMLOCK),
                ("address space", resource.RLIMIT_AS),
            )
        },
        environ=dict(os.environ),
    )


def _device(index: int) -> Device:
    device = torch.device("cuda", index)
    properties = torch.cuda.get_device_properties(device)
    free, memory = torch.cuda.mem_get_info(device)
    return Device(properties.name, memory, free, (properties.major, properties.minor), native_bfloat16(device))


def _all_peers(count: int) -> bool:
    pairs = ((one, other) for one in range(count) for other in range(count) if one != other)
    return all(torch.cuda.can_device_access_peer(*pair) for pair in pairs)


def _has_nccl() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_nccl_available()


def _torch_build() -> str:
    if torch.version.cuda:
        return f"CUDA {torch.version.cuda}"
    return f"ROCm {torch.version.hip}" if torch.version.hip else "CPU"


def _driver(file: Path) -> str | None:
    """The driver's version, such as `580.65.06`, from the first line of NVIDIA's version file."""
    if not file.is_file():
        return None
    words = file.read_text(encoding="utf-8", errors="replace").splitlines()[0].split()
    return next((word for word in words if word[:1].isdigit() and "." in word), None)


def _program(variable: str, names: tuple[str, ...]) -> str | None:
    asked = os.environ.get(variable)
    return next(filter(None, map(shutil.which, [asked] if asked else names)), None)


def _deepspeed() -> tuple[str | None, tuple[str, ...], str | None]:
    logging.disable(logging.WARNING)  # its warnings at import have their own rows in the table
    try:
        from deepspeed.accelerator import get_accelerator
        from deepspeed.git_version_info import installed_ops

        built = tuple(name for name, there in installed_ops.items() if there)
        return str(get_accelerator().device_name()), built, None
    except Exception as error:  # its import inspects drivers and compilers, so many things can fail
        return None, (), f"{type(error).__name__}: {error}".splitlines()[0]
    finally:
        logging.disable(logging.NOTSET)


def _memory() -> int:
    """Bytes that this process may still allocate: the machine's, or the limit of its container or job if lower."""
    limits = [Path(file).read_text().strip() for file in CGROUP_LIMITS if Path(file).is_file()]
    return min([psutil.virtual_memory().available, *(int(limit) for limit in limits if limit.isdigit())])


def _interfaces() -> dict[str, tuple[str, ...]]:
    up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    found = {
        name: tuple(a.address for a in addresses if a.family in (socket.AF_INET, socket.AF_INET6))
        for name, addresses in psutil.net_if_addrs().items()
        if name in up
    }
    return {name: addresses for name, addresses in found.items() if addresses}


def _resolved(name: str) -> str | None:
    try:
        return str(socket.getaddrinfo(name, None)[0][4][0])
    except OSError:
        return None


def volume(folder: Path) -> Volume:
    """The file system of `folder`, which need not exist yet."""
    path = given_path(folder).absolute()
    there = next(parent for parent in (path, *path.parents) if parent.is_dir())
    mounts = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    real = there.resolve()
    mount = next((parent for parent in (real, *real.parents) if parent in mounts), None)
    system = mounts[mount] if mount is not None else "unknown"
    return Volume(path, system, shutil.disk_usage(there).free, os.access(there, os.W_OK | os.X_OK))
