"""Why a run has failed: of several ranks the first one's words count, for the others fail because of it."""

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

# seconds for which other ranks let the main one say what is wrong with the input: most mistakes are seen by all
PATIENCE = 1.0


def in_words(error: BaseException) -> str:
    """One line about an error, with this rank and its host where others may not see the same."""
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
    """What the first rank that has failed says, and the code that it leaves with: these, if it is this one.

    Args:
        status: `status.json` of the run, which rank 0 has written if it was the first, and can no longer be asked.
    """
    said = first_failure(to_json([message, code]))
    words, number = parse_json(said) if said else StatusFile.found(status).failure or (message, code)
    return words, ExitCode(number)  # type: ignore[call-arg]
