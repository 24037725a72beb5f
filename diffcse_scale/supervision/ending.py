"""How a training process ends: what it prints, and its exit code."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from diffcse_scale.distributed import is_main, local_rank
from diffcse_scale.foundation.errors import InputError, PeerFailed, RunEnded, exit_code_of, told
from diffcse_scale.foundation.launched import launched_rank
from diffcse_scale.rendezvous import leave, linger


def run_to_its_end(main: Callable[[], object]) -> None:
    """Call `main` and exit with the code from the table of exit codes. Only bugs in the program print a traceback."""
    try:
        main()
        leave()
    except RunEnded as end:
        peer = end if isinstance(end, PeerFailed) else None
        if peer.told_here if peer else is_main():
            print(f"error: {end}" if peer else end, file=sys.stderr)
        leave(alone=peer is not None)
        sys.exit(exit_code_of(end))
    except InputError as error:
        if local_rank() > 0:
            # all ranks see most mistakes, and the launcher ends the other ranks when the first exits; so only a mistake
            # that no other rank sees is printed here
            time.sleep(3)
        print(f"{_whose()}: {error}", file=sys.stderr)
        leave(alone=True)
        sys.exit(exit_code_of(error))
    except Exception as error:
        if (said := told(error)) is None:
            linger()
            raise
        print(
            f"{_whose()}: {said.rstrip('.')}. The last complete checkpoint is intact: continue with --auto-resume.",
            file=sys.stderr,
        )
        linger()
        sys.exit(exit_code_of(error))


def _whose() -> str:
    return "error" if local_rank() == 0 else f"error on rank {launched_rank()}"
