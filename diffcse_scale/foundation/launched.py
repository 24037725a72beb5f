"""The variables with which a launcher tells a process its rank and the number of ranks."""

from __future__ import annotations

import os
from collections.abc import Mapping

from diffcse_scale.foundation.errors import InputError, quoted

NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT", "DIFFCSE_WORLD_SIZE")
SET_TOGETHER = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def check_launched(environ: Mapping[str, str] = os.environ) -> None:
    """Check the variables that a launcher sets. Without a launcher none of them is set.

    Raises:
        InputError: a value is not a number or is out of range, or some variables are missing.
    """
    for name in NUMBERS:
        if name in environ and not (environ[name].isascii() and environ[name].isdigit()):
            raise InputError(
                f"{name} is {quoted(environ[name])}, which is not a whole number; unset it, or let a launcher set it."
            )
    if "RANK" not in environ:
        return
    count = int(environ.get("WORLD_SIZE", "2"))
    missing = [name for name in SET_TOGETHER if name not in environ and not (count == 1 and name == "MASTER_PORT")]
    if missing:
        raise InputError(f"RANK is set, but {', '.join(missing)} is not; unset it, or let a launcher set all of them.")
    if int(environ["RANK"]) >= count:
        raise InputError(f"RANK is {environ['RANK']} of WORLD_SIZE {count}; ranks count from 0 to {count - 1}.")
    if count > 1 and not 0 < int(environ["MASTER_PORT"]) < 2**16:
        raise InputError(f"MASTER_PORT is {quoted(environ['MASTER_PORT'])}; give one between 1 and 65535.")


def launched_rank() -> int:
    """This process's rank as set by the launcher, with or without a process group; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def speaks(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this is the process that prints messages for all processes of its machine."""
    number = environ.get("LOCAL_RANK", "0")
    return not number.isdigit() or int(number) == 0
