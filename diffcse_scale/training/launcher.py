"""`diffcse-scale train`: starts the installed train.py on this machine with DeepSpeed's launcher."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import NoReturn

from diffcse_scale.foundation.devices import device_files, hidden_by, left_idle
from diffcse_scale.foundation.errors import InputError, quoted
from diffcse_scale.foundation.shipped import shipped
from diffcse_scale.supervision.launchers import JOBS_DEVICES

VISIBLE = "CUDA_VISIBLE_DEVICES"


def launch(processes: int | None, arguments: list[str]) -> NoReturn:
    """Replace this process by the `deepspeed` launcher of train.py.

    Args:
        processes: number of ranks; None for one rank per device.
        arguments: arguments for train.py.

    Raises:
        InputError: there are fewer devices than ranks.
    """
    import torch

    from diffcse_scale.rendezvous import free_port

    options, environment = on_this_machine(processes, os.environ)
    if not torch.accelerator.is_available() and left_idle() is None:
        environment["DS_ACCELERATOR"] = "cpu"  # else each process of the launcher reports that it found no accelerator
    # without --quiet it prints its whole command line, secrets included; it reports a failed rank in any case
    launcher = ["deepspeed.launcher.runner", "--quiet", "--master_port", str(free_port()), *options]
    print("Starting train.py with DeepSpeed; loading PyTorch takes a while.", flush=True)
    os.execve(sys.executable, [sys.executable, "-m", *launcher, str(shipped("train.py")), *arguments], environment)


def on_this_machine(processes: int | None, environ: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """The launcher's options and environment for `processes` ranks (None: one on each visible device).

    The launcher understands only numbers in CUDA_VISIBLE_DEVICES and fails at anything else. So the variable is hidden
    from the launcher and given back to the ranks.

    Raises:
        InputError: CUDA_VISIBLE_DEVICES names fewer devices than `processes`.
    """
    environment = dict(environ)
    if hidden_by(environ):
        environment["DS_ACCELERATOR"] = "cpu"
        environment.pop(VISIBLE, None)
    elif environ.get("DS_ACCELERATOR") == "cpu":
        environment.pop(VISIBLE, None)
    elif VISIBLE in environ:
        environment[JOBS_DEVICES] = environment.pop(VISIBLE)
        devices = len([name for name in environ[VISIBLE].split(",") if name.strip()])
        if processes is not None and processes > devices and device_files():
            raise InputError(
                f"{processes} processes need as many devices, but {VISIBLE} is {quoted(environ[VISIBLE])}; list more "
                "there, or start fewer processes."
            )
        processes = processes or devices
    return ([] if processes is None else ["--num_gpus", str(processes)]), environment
