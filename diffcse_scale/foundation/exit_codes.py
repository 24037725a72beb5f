"""The ways in which a run ends, in two tables: the exit codes, and the requests to stop with the code of each.

`docs/clusters.md` says what to do about each code. Only `result.json` proves that a run has finished, because a killed
launcher may exit with 0.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """How a run ended. Codes from 74 on are above those of Python, DeepSpeed and srun, and below 128 + signal.

    Attributes:
        state: the state in `status.json`; None if another process owns the run by now, so nothing is written.
    """

    state: str | None

    def __new__(cls, code: int, state: str | None) -> ExitCode:
        member = int.__new__(cls, code)
        member._value_, member.state = code, state
        return member

    FINISHED = 0, "finished"
    FAILED = 1, "failed"  # a bug in the program, with its traceback
    MISTAKE = 2, "failed"  # an error of the user or the machine, in one sentence (`errors.told`)
    STOPPED = 74, "stopped"  # stopped on request after a complete checkpoint; must not be restarted
    PREEMPTED = 75, "stopped"  # the same, but must be restarted by whoever started it; EX_TEMPFAIL has this meaning
    SUPERSEDED = 76, None  # a later incarnation of the job owns the run; nothing more was written
    HUNG = 77, "failed"  # a rank fell silent
    NO_PROGRESS = 78, "failed"  # requeued repeatedly from the same step, as `slurm/common.sh` counts
    NOT_FINITE = 79, "failed"  # too many consecutive steps without a finite loss and gradient
    LOST = 80, "failed"  # a rank disappeared without a message


class Reason(IntEnum):
    """Why a run is asked to stop. If there are several reasons, the largest counts.

    Attributes:
        words: completes the message "Stopped by ...".
        exit_code: the run's exit code.
    """

    words: str
    exit_code: ExitCode

    def __new__(cls, rank: int, words: str = "", exit_code: ExitCode = ExitCode.FINISHED) -> Reason:
        member = int.__new__(cls, rank)
        member._value_, member.words, member.exit_code = rank, words, exit_code
        return member

    NONE = 0
    USR1 = 1, "signal USR1", ExitCode.PREEMPTED
    REQUEUE_FILE = 2, 'a stop file that says "requeue"', ExitCode.PREEMPTED
    STOP_FILE = 3, "the stop file", ExitCode.STOPPED
    LAUNCHER = 4, "the end of its launcher", ExitCode.STOPPED
    TERM = 5, "signal TERM", ExitCode.STOPPED
    HUP = 6, "signal HUP", ExitCode.STOPPED
    INT = 7, "signal INT", ExitCode.STOPPED
    SUPERSEDED = 8, "a later incarnation", ExitCode.SUPERSEDED
