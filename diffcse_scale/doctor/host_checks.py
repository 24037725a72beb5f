"""Checks of everything around the devices: cores, memory, limits, network, folders, SLURM."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

from diffcse_scale.doctor.machine import GIB, Machine, Volume
from diffcse_scale.doctor.verdict import Row, Verdict
from diffcse_scale.foundation.environment import threads_asked_for

OK, SLOWER, BROKEN = Verdict.OK, Verdict.SLOWER, Verdict.BROKEN
# a rank has three threads: one trains, one makes batches, one writes checkpoints
CORES_A_RANK = 2
# a checkpoint is copied to host memory before it is written
LITTLE_MEMORY = 4 * GIB
# containers get 64 MiB by default; NCCL needs some MiB for every pair of devices on a machine
LITTLE_SHARED_MEMORY = GIB
# enough for a base-size model with its optimizer state; the minimum for writing anything
LITTLE_DISK, NO_DISK = 10 * GIB, GIB
FEW_FILES = 1024
# file systems whose content is lost with the container or at the next reboot
FLEETING = ("overlay", "tmpfs", "ramfs")


def versions(machine: Machine) -> Row:
    """The system, and the versions of the main packages."""
    known = ", ".join(f"{name} {machine.packages[name]}" for name in ("diffcse-scale", "transformers"))
    return Row("system", f"{machine.system}, {known}")


def cores(machine: Machine) -> Row:
    """Check the cores that this process may use; under SLURM these are the task's cores."""
    # under srun every rank is a separate task with its own cores
    ranks = 1 if "SLURM_STEP_ID" in machine.environ else max(1, len(machine.devices))
    threads = threads_asked_for(machine.environ)
    found = f"{machine.cores} for {ranks} {'rank' if ranks == 1 else 'ranks'}"
    if threads > machine.cores:
        advice = f"set OMP_NUM_THREADS to {max(1, machine.cores // ranks)} at most: threads wait for each other"
        return Row("cores", f"{found}, OMP_NUM_THREADS={threads}", SLOWER, advice)
    if machine.cores < CORES_A_RANK * ranks:
        advice = f"give every rank {CORES_A_RANK} cores or more (--cpus-per-task): batches are prepared during training"
        return Row("cores", found, SLOWER, advice)
    return Row("cores", found)


def memory(machine: Machine) -> Row:
    """Check the memory that system, container and job leave to this process."""
    found = f"{_gib(machine.memory)} available"
    if machine.memory < LITTLE_MEMORY:
        return Row("memory", found, SLOWER, "ask for more (--mem): loading models and copying checkpoints needs it")
    return Row("memory", found)


def shared_memory(machine: Machine) -> Row:
    """Check /dev/shm, through which processes on a machine share tensors."""
    free = machine.shared_memory.free
    if free >= LITTLE_SHARED_MEMORY:
        return Row("shared memory", f"{_gib(free)} free")
    advice = "start the container with --ipc=host, or --shm-size=8g"
    return Row("shared memory", f"{_gib(free)} free", BROKEN if len(machine.devices) > 1 else SLOWER, advice)


def limits(machine: Machine) -> Row:
    """Check the limits of `ulimit`."""
    files, locked, space = (machine.limits[name] for name in ("open files", "locked memory", "address space"))
    if space is not None and machine.devices:
        return Row("limits", f"{_gib(space)} of addresses", BROKEN, "ulimit -v unlimited: CUDA reserves far more")
    if locked is not None and machine.infiniband:
        advice = "ulimit -l unlimited (for SLURM in slurmd's service: LimitMEMLOCK=infinity): InfiniBand pins memory"
        return Row("limits", f"{_gib(locked)} of locked memory", BROKEN, advice)
    if files is not None and files < FEW_FILES:
        return Row("limits", f"{files} open files", SLOWER, f"ulimit -n {FEW_FILES}, or fewer shards and workers")
    return Row("limits", f"{'unlimited' if files is None else f'{files:,}'} open files")


def network(machine: Machine) -> Row:
    """Check gloo's network interface: the requested one, or the one that reaches the other ranks."""
    asked = machine.environ.get("GLOO_SOCKET_IFNAME")
    there = ", ".join(machine.interfaces) or "none"
    if asked and not set(asked.split(",")) <= set(machine.interfaces):
        return Row("network", f"GLOO_SOCKET_IFNAME={asked}; up are {there}", BROKEN, "name one that is up, or unset it")
    if asked:
        return Row("network", f"{asked}, asked for by GLOO_SOCKET_IFNAME")
    if "MASTER_ADDR" in machine.environ:
        master = machine.environ["MASTER_ADDR"]
        if machine.reached_by is None:
            advice = "check that the name resolves here and that the network is up"
            return Row("network", f"nothing reaches MASTER_ADDR={master}; up are {there}", BROKEN, advice)
        return Row("network", f"{machine.reached_by} reaches MASTER_ADDR={master}")
    if machine.host_address is None:
        advice = "put this machine's name into /etc/hosts, or set GLOO_SOCKET_IFNAME"
        return Row("network", f"the name {machine.host} resolves to nothing; up are {there}", BROKEN, advice)
    note = ""
    if _is_loopback(machine.host_address) and machine.nodes > 1:
        note = ", which no other machine reaches: GLOO_SOCKET_IFNAME tells ranks the right interface"
    return Row("network", f"this machine's name is {machine.host_address}{note}; up are {there}")


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def infiniband(machine: Machine) -> Row:
    """Check InfiniBand, which connects machines faster than Ethernet."""
    found = ", ".join(machine.infiniband) or "none"
    if machine.infiniband and machine.environ.get("NCCL_IB_DISABLE") == "1":
        return Row("InfiniBand", f"{found}, NCCL_IB_DISABLE=1", SLOWER, "unset it, unless NCCL fails without it")
    if not machine.infiniband and machine.nodes > 1 and machine.devices:
        advice = "measure an all-reduce with --ranks; in a container, mount /dev/infiniband"
        return Row("InfiniBand", found, SLOWER, advice)
    return Row("InfiniBand", found)


def cache(machine: Machine) -> Row:
    """Check the folder of tokenized corpora."""
    return _volume("cache", machine.cache, "set DIFFCSE_CACHE to a folder", machine.nodes > 1)


def models(machine: Machine) -> Row:
    """Check the folder of models from the Hub."""
    return _volume("models", machine.models, "set HF_HOME to a folder", machine.nodes > 1)


def output(machine: Machine) -> Row:
    """Check the folder of runs with their checkpoints."""
    return _volume("runs", machine.output, "write runs (--output) to a folder", machine.nodes > 1)


def _volume(name: str, place: Volume, remedy: str, several: bool) -> Row:
    found = f"{place.path}: {_gib(place.free)} free, {place.system}"
    where = "on a file system with more room" if place.writable else "that you may write to"
    where += ", which all nodes see" if several else ""
    if not place.writable or place.free < NO_DISK:
        return Row(name, f"{found}{'' if place.writable else ', not writable'}", BROKEN, f"{remedy} {where}")
    if place.free < LITTLE_DISK:
        return Row(name, found, SLOWER, f"{remedy} {where}: a run stops when the disk is full")
    if place.system in FLEETING:
        return Row(
            name, found, SLOWER, f"{remedy} that outlives this container or machine: everything is prepared again"
        )
    return Row(name, found)


def slurm(machine: Machine) -> Row:
    """Check the SLURM job of this process, and how many of its nodes were checked."""
    job = machine.environ.get("SLURM_JOB_ID")
    if job is None:
        return Row("SLURM", "no job")
    tasks = int(machine.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    found = f"job {job}: nodes {machine.nodes}, tasks of this step {tasks}"
    if tasks < machine.nodes:
        return Row("SLURM", found, SLOWER, "this checks one node: `bash slurm/doctor.sbatch` checks each")
    if tasks > 1 and "RANK" not in machine.environ:
        return Row(
            "SLURM", f"{found}, without RANK", BROKEN, "start it as slurm/doctor.sbatch does: srun slurm/rank.sh ..."
        )
    return Row("SLURM", found)


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size < 100 * GIB else f"{size / GIB:,.0f} GiB"


CHECKS: tuple[Callable[[Machine], Row], ...] = (
    *(versions, cores, memory, shared_memory, limits, network, infiniband, cache, models, output, slurm),
)
