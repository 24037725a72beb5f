"""How a run ended, as its exit code says it. `docs/clusters.md` has the table with what to do.

A finished run is told by `result.json` alone: a launcher that is killed may itself leave with 0.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """The codes from 74 on are above those of Python, DeepSpeed and srun, and below 128 + signal."""

    FINISHED = 0
    FAILED = 1  # an error of the program, with its traceback
    MISTAKE = 2  # the user's, in one sentence (`InputError`)
    STOPPED = 74  # on request (TERM, a stop file, a launcher that died), after a whole checkpoint; it stays stopped
    PREEMPTED = 75  # the same after USR1: whoever started it is to start it again; EX_TEMPFAIL says just that
    SUPERSEDED = 76  # a later incarnation of the job has the run; nothing more was written
    HUNG = 77  # a rank fell silent
    NO_PROGRESS = 78  # requeued twice from the same step
    NOT_FINITE = 79  # too many steps in a row without a finite loss and gradient
