"""`diffcse-scale train`: DeepSpeed's launcher on this machine, for train.py wherever it is installed."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import NoReturn

from diffcse_scale.foundation.devices import device_files, hidden_by
from diffcse_scale.foundation.errors import InputError, quoted
from diffcse_scale.foundation.secrets import masked_command
from diffcse_scale.foundation.shipped import shipped
from diffcse_scale.supervision.launchers import JOBS_DEVICES

VISIBLE = "CUDA_VISIBLE_DEVICES"


def launch(processes: int | None, arguments: list[str]) -> NoReturn:
    """Become the `deepspeed` launcher of train.py.

    Args:
        processes: ranks; all devices if None.
        arguments: train.py's.

    Raises:
        InputError: there are fewer devices than ranks.
    """
    from diffcse_scale.rendezvous import free_port

    options, environment = on_this_machine(processes, os.environ)
    launcher = ["deepspeed.launcher.runner", "--master_port", str(free_port()), *options]
    if masked_command(arguments) != " ".join(arguments):
        launcher.append("--quiet")  # it would log the whole command line
    os.execve(sys.executable, [sys.executable, "-m", *launcher, str(shipped("train.py")), *arguments], environment)


def on_this_machine(processes: int | None, environ: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """The launcher's options and environment for so many ranks (None: one on each visible device).

    The launcher understands of CUDA_VISIBLE_DEVICES no more than numbers, and fails at others; so it is kept from it,
    and the ranks get it back.

    Raises:
        InputError: CUDA_VISIBLE_DEVICES names fewer devices than ranks were asked for.
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
                f"{processes} processes need as many devices, and {VISIBLE} is {quoted(environ[VISIBLE])}; name more "
                "there, or ask for fewer processes."
            )
        processes = processes or devices
    return ([] if processes is None else ["--num_gpus", str(processes)]), environment
