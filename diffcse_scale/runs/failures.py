"""Why a run has failed. The message of the first failing rank counts, because the others fail as a consequence."""

from __future__ import annotations

import time
from pathlib import Path

from diffcse_scale.distributed import is_main, rank, world_size
from diffcse_scale.foundation.environment import host_name
from diffcse_scale.foundation.errors import InputError, RunEnded, brief, told
from diffcse_scale.foundation.exit_codes import ExitCode
from diffcse_scale.foundation.objects import parse_json
from diffcse_scale.foundation.strict_json import to_json
from diffcse_scale.rendezvous import first_failure, lost_a_peer
from diffcse_scale.runs.status import StatusFile

# seconds that other ranks let the main rank report a mistake in the input first: all ranks see most mistakes
PATIENCE = 1.0


def in_words(error: BaseException) -> str:
    """One line about an error, with this rank and its host if other ranks may not see the same error."""
    message = (told(error) or str(error) or type(error).__name__).splitlines()[0]
    if lost_a_peer(error):
        message = (
            f"it lost another rank ({brief(message, 200)}); check that rank's last output, and whether its machine had "
            "memory left."
        )
    if world_size() == 1 or isinstance(error, RunEnded) or (is_main() and isinstance(error, InputError)):
        return message
    if isinstance(error, InputError):
        time.sleep(PATIENCE)
    return f"Rank {rank()} on {host_name()}: {message}"


def first_of_all(message: str, code: ExitCode, status: Path) -> tuple[str, ExitCode]:
    """The message and exit code of the first rank that failed; the arguments, if it is this rank.

    Args:
        status: `status.json` of the run; it has the message of rank 0 if that failed first and has already ended.
    """
    said = first_failure(to_json([message, code]))
    words, number = parse_json(said) if said else StatusFile.found(status).failure or (message, code)
    return words, ExitCode(number)  # type: ignore[call-arg]
