"""`diffcse-scale train`: DeepSpeed's launcher on this machine, for train.py wherever it is installed."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from diffcse_scale.foundation.devices import hidden_by
from diffcse_scale.foundation.secrets import masked_command
from diffcse_scale.foundation.shipped import shipped


def launch(processes: int | None, arguments: list[str]) -> NoReturn:
    """Become the `deepspeed` launcher of train.py.

    Args:
        processes: ranks; all devices if None.
        arguments: train.py's.
    """
    from diffcse_scale.rendezvous import free_port

    launcher = ["deepspeed.launcher.runner", "--master_port", str(free_port())]
    if processes:
        launcher += ["--num_gpus", str(processes)]
    if masked_command(arguments) != " ".join(arguments):
        launcher.append("--quiet")  # it would log the whole command line
    environment = dict(os.environ)
    if hidden_by(environment):
        # DeepSpeed's launcher would look for a device of the name -1
        environment["DS_ACCELERATOR"] = "cpu"
        environment.pop("CUDA_VISIBLE_DEVICES", None)
    os.execve(sys.executable, [sys.executable, "-m", *launcher, str(shipped("train.py")), *arguments], environment)
