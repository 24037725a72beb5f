"""Joins the ranks that a launcher has started, and selects this rank's device."""

from __future__ import annotations

import logging
import os

import deepspeed
import deepspeed.ops
import torch
from deepspeed.accelerator import get_accelerator
from torch.distributed import DistNetworkError

from diffcse_scale.distributed import LAUNCHERS_NUMBER, local_rank
from diffcse_scale.foundation.devices import device_error, left_idle
from diffcse_scale.foundation.environment import host_name
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.rendezvous import free_port, join

# the variables in which launchers that set no RANK give the number of processes
FOREIGN_LAUNCHERS = {"SLURM_STEP_NUM_TASKS": "srun", "OMPI_COMM_WORLD_SIZE": "mpirun", "PMI_SIZE": "an MPI launcher"}


ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")


def let_segments_grow() -> None:
    """Let the allocator grow its segments, which avoids gaps that the next size does not fit into.

    Packed rows differ in size from step to step. PyTorch reads the setting when CUDA starts. A user's own setting,
    under any of its names, is kept.
    """
    if not any(name in os.environ for name in ALLOCATOR_VARIABLES):
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"


def start_process_group(seconds: float = 600.0) -> None:
    """Join the ranks that the launcher started, or be the only rank. Compiles nothing.

    Args:
        seconds: how long to wait for the other ranks.

    Raises:
        InputError: GPUs exist but cannot be used, there are more ranks here than GPUs, a launcher started several
            processes without RANK, not all ranks came, or the port is taken.
    """
    if found := left_idle():
        raise InputError(
            f"Training would run on the CPU, although {host_name()} has {found}: {device_error()}; fix that, or set "
            "DS_ACCELERATOR=cpu to train on the CPU."
        )
    let_segments_grow()
    if "RANK" not in os.environ:
        for variable, launcher in FOREIGN_LAUNCHERS.items():
            if int(os.environ.get(variable, "1")) > 1:
                raise InputError(
                    f"{launcher} started {os.environ[variable]} processes without RANK, WORLD_SIZE, LOCAL_RANK, "
                    "MASTER_ADDR and MASTER_PORT; set them, or start with `diffcse-scale train`."
                )
        # a bare `python train.py` is a run of one process, not a search for MPI
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1")
    if os.environ["WORLD_SIZE"] == "1":
        # no other rank has to know the port, and the launcher's choice is the same for every run on a machine
        os.environ["MASTER_PORT"] = str(free_port())
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if get_accelerator().device_name() == "cpu":
        # on CPUs DeepSpeed would compile a shared-memory backend for its own collectives. That takes a minute and a
        # compiler, and we do not call these operations; gloo works without it. The whole table is replaced, because
        # DeepSpeed would otherwise make it at the first use, by running gcc on every rank
        deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}
    _take_device()
    try:
        # NCCL must know the device
        join(get_accelerator().communication_backend_name(), seconds, device() if device().type == "cuda" else None)
    except DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise InputError(
            f"Port {os.environ['MASTER_PORT']} is in use, perhaps by another run on this machine; give "
            "another one to `deepspeed --master_port`."
        ) from None
    deepspeed.init_distributed()


def _take_device() -> None:
    """Set this rank's device, before the first collective.

    NCCL uses the current device, which would otherwise be the first one for every rank.

    Raises:
        InputError: there are more ranks here than devices.
    """
    number = local_rank()
    count = number + 1 if get_accelerator().device_name() == "cpu" else get_accelerator().device_count()
    # a launcher may name several devices; torch counts only those that exist
    named = len(os.environ.get("CUDA_VISIBLE_DEVICES", "").split(","))
    if number >= count and max(count, named) > 1:
        raise InputError(
            f"Rank {os.environ['RANK']} is number {number} on {host_name()}, where devices are visible: {count}; start "
            "as many processes as there are devices, or give each process its own device (srun --gpus-per-task=1)."
        )
    if number >= count:
        # each process sees only its own device; DeepSpeed uses LOCAL_RANK as the device's number
        os.environ[LAUNCHERS_NUMBER] = str(number)
        number, os.environ["LOCAL_RANK"] = 0, "0"
    get_accelerator().set_device(number)


def device() -> torch.device:
    """This rank's device."""
    return torch.device(get_accelerator().current_device_name())
