"""Each row of the doctor's table, on machines that are not here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from diffcse_scale.doctor import device_checks, host_checks
from diffcse_scale.doctor.command import CHECKS
from diffcse_scale.doctor.machine import GIB, Device, Machine, Volume
from diffcse_scale.doctor.verdict import Row, Verdict
from diffcse_scale.foundation.environment import PACKAGES

A100 = Device("A100", 80 * GIB, 79 * GIB, (8, 0), bfloat16=True)
V100 = Device("V100", 32 * GIB, 31 * GIB, (7, 0), bfloat16=False)
DISK = Volume(Path("/data"), "ext4", 500 * GIB, writable=True)
UNLIMITED = {"open files": None, "locked memory": None, "address space": None}
# eight GPUs and everything that belongs to them
WELL = Machine(
    host="node1",
    system="Linux 6, Python 3.11",
    packages={name: "1.0" for name in PACKAGES},
    cores=64,
    memory=500 * GIB,
    torch_build="CUDA 13.0",
    torch_architectures=("sm_80", "sm_90", "compute_90"),
    device_files=tuple(f"/dev/nvidia{number}" for number in range(8)),
    driver="580.65.06",
    device_error=None,
    devices=(A100,) * 8,
    peers=True,
    nccl="2.28.3",
    triton="3.6.0",
    c_compiler="/usr/bin/gcc",
    cxx_compiler="/usr/bin/g++",
    python_h=True,
    accelerator="cuda",
    operators=(),
    deepspeed_error=None,
    interfaces={"lo": ("127.0.0.1",), "eth0": ("10.0.0.1",)},
    host_address="10.0.0.1",
    reached_by=None,
    infiniband=("mlx5_0",),
    shared_memory=replace(DISK, path=Path("/dev/shm"), system="tmpfs"),
    cache=DISK,
    models=DISK,
    output=DISK,
    limits=UNLIMITED,
    environ={},
)
TWO_NODES = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}
RANK = {**TWO_NODES, "RANK": "0", "MASTER_ADDR": "node1"}
NO_DEVICES: dict[str, Any] = {"devices": (), "device_error": "no driver", "accelerator": "cpu"}
CPU: dict[str, Any] = {**NO_DEVICES, "device_files": (), "driver": None, "torch_build": "CPU", "nccl": None}
SLOWER, BROKEN = Verdict.SLOWER, Verdict.BROKEN


def test_on_a_machine_that_has_everything_every_row_is_ok_and_asks_for_nothing() -> None:
    rows = [check(WELL) for check in CHECKS]
    assert {(row.verdict, row.advice) for row in rows} == {(Verdict.OK, "")}
    assert len({row.check for row in rows}) == len(rows) == len(device_checks.CHECKS) + len(host_checks.CHECKS)


def test_a_machine_without_gpus_is_slower_and_otherwise_well() -> None:
    rows = [check(replace(WELL, **CPU)) for check in CHECKS]
    assert [row.check for row in rows if row.verdict is not Verdict.OK] == ["devices"]


@pytest.mark.parametrize(
    ("check", "changes", "verdict", "words"),
    [
        (device_checks.torch_build, {**NO_DEVICES, "torch_build": "CPU"}, BROKEN, "install a torch build"),
        (device_checks.driver, {**NO_DEVICES, "device_error": "The driver is too old"}, BROKEN, "driver is too old"),
        (device_checks.devices, {**NO_DEVICES, "environ": {"CUDA_VISIBLE_DEVICES": ""}}, SLOWER, "unset CUDA"),
        (device_checks.devices, {**NO_DEVICES, "environ": {"DS_ACCELERATOR": "cpu"}}, SLOWER, "unset DS_ACCELERATOR"),
        (device_checks.devices, {"devices": (A100, replace(A100, free=GIB))}, SLOWER, "cuda:1 has 1 GiB free"),
        (device_checks.devices, {"devices": (A100, V100)}, SLOWER, "1 x A100, 80 GiB; 1 x V100, 32 GiB"),
        (device_checks.capability, {"devices": (V100,)}, BROKEN, "sm_70; torch has sm_80, sm_90, compute_90"),
        (device_checks.capability, {"devices": (V100,), "torch_architectures": ("sm_70",)}, SLOWER, "float16"),
        (device_checks.nccl, {"nccl": None}, BROKEN, "with NCCL"),
        (device_checks.nccl, {"peers": False}, SLOWER, "through host memory"),
        (device_checks.nccl, {"environ": {"NCCL_P2P_DISABLE": "1"}}, SLOWER, "unset it"),
        (device_checks.kernels, {"c_compiler": None, "python_h": False}, SLOWER, "missing: a C compiler, Python.h"),
        (device_checks.kernels, {"triton": None}, SLOWER, "missing: Triton"),
        (device_checks.compiling, {"cxx_compiler": None}, SLOWER, "install g++"),
        (device_checks.deepspeed, {"accelerator": "cpu"}, BROKEN, "DS_ACCELERATOR=cuda"),
        (device_checks.deepspeed, {"deepspeed_error": "OSError: libcudart"}, BROKEN, "libcudart"),
        (host_checks.cores, {"cores": 8}, SLOWER, "--cpus-per-task"),
        (host_checks.cores, {"cores": 4, "environ": {"OMP_NUM_THREADS": "64,2"}}, SLOWER, "THREADS to 1 at most"),
        (host_checks.memory, {"memory": 2 * GIB}, SLOWER, "--mem"),
        (host_checks.shared_memory, {"shared_memory": replace(DISK, free=GIB // 16)}, BROKEN, "--ipc=host"),
        (host_checks.shared_memory, {**CPU, "shared_memory": replace(DISK, free=GIB // 16)}, SLOWER, "--shm-size"),
        (host_checks.limits, {"limits": {**UNLIMITED, "address space": GIB}}, BROKEN, "ulimit -v"),
        (host_checks.limits, {"limits": {**UNLIMITED, "locked memory": GIB}}, BROKEN, "LimitMEMLOCK"),
        (host_checks.limits, {"limits": {**UNLIMITED, "open files": 256}}, SLOWER, "256 open files"),
        (host_checks.network, {"environ": {"GLOO_SOCKET_IFNAME": "ib0"}}, BROKEN, "ib0; up are lo, eth0"),
        (host_checks.network, {"environ": RANK}, BROKEN, "nothing reaches MASTER_ADDR=node1"),
        (host_checks.network, {"host_address": None}, BROKEN, "/etc/hosts"),
        (host_checks.infiniband, {"environ": {"NCCL_IB_DISABLE": "1"}}, SLOWER, "unset it"),
        (host_checks.infiniband, {"environ": RANK, "infiniband": ()}, SLOWER, "/dev/infiniband"),
        (host_checks.cache, {"cache": replace(DISK, free=2 * GIB)}, SLOWER, "DIFFCSE_CACHE"),
        (host_checks.models, {"models": replace(DISK, writable=False)}, BROKEN, "HF_HOME to a folder that you"),
        (host_checks.output, {"output": replace(DISK, free=0), "environ": RANK}, BROKEN, "which all nodes see"),
        (host_checks.output, {"output": replace(DISK, system="overlay")}, SLOWER, "outlives this container"),
        (host_checks.slurm, {"environ": {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2"}}, SLOWER, "doctor.sbatch"),
        (host_checks.slurm, {"environ": TWO_NODES}, BROKEN, "srun slurm/rank.sh"),
    ],
)  # fmt: skip
def test_what_is_amiss_is_said_with_what_to_do(
    check: Callable[[Machine], Row], changes: dict[str, Any], verdict: Verdict, words: str
) -> None:
    row = check(replace(WELL, **changes))
    assert row.verdict is verdict
    assert row.advice and words in f"{row.found} {row.advice}"


@pytest.mark.parametrize(
    ("check", "changes", "words"),
    [
        (device_checks.torch_build, {"torch_build": "CPU", "environ": {"DS_ACCELERATOR": "cpu"}}, "built for CPU"),
        (device_checks.capability, {"devices": (replace(A100, capability=(8, 6)),)}, "sm_86"),  # sm_80's programs run
        (device_checks.capability, {"devices": (replace(A100, capability=(12, 0)),)}, "sm_120"),  # from compute_90
        (device_checks.nccl, {"devices": (A100,), "nccl": None}, "nothing that needs it"),
        (host_checks.cores, {"cores": 2, "environ": {"SLURM_STEP_ID": "0"}}, "2 for 1 rank"),
        (host_checks.limits, {**CPU, "limits": {**UNLIMITED, "address space": GIB}}, "unlimited open files"),
        (host_checks.network, {"environ": {"GLOO_SOCKET_IFNAME": "eth0"}}, "asked for"),
        (host_checks.network, {"environ": RANK, "reached_by": "eth0"}, "eth0 reaches MASTER_ADDR=node1"),
        (host_checks.network, {"environ": TWO_NODES, "host_address": "127.0.1.1"}, "no other machine reaches"),
        (host_checks.slurm, {"environ": RANK}, "job 7"),
    ],
)
def test_what_only_looks_amiss_is_ok(check: Callable[[Machine], Row], changes: dict[str, Any], words: str) -> None:
    row = check(replace(WELL, **changes))
    assert row.verdict is Verdict.OK and words in row.found
