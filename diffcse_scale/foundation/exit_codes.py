"""The ways in which a run ends, in two tables: the exit codes, and the requests to stop with the code of each.

`docs/clusters.md` says what to do about a code. A finished run is told by `result.json` alone: a launcher that is
killed may itself leave with 0.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """How a run ended. The codes from 74 on are above those of Python, DeepSpeed and srun, and below 128 + signal.

    Attributes:
        state: what `status.json` calls a run that ended so; None where it is another's by now and nothing is written.
    """

    state: str | None

    def __new__(cls, code: int, state: str | None) -> ExitCode:
        member = int.__new__(cls, code)
        member._value_, member.state = code, state
        return member

    FINISHED = 0, "finished"
    FAILED = 1, "failed"  # an error of the program, with its traceback
    MISTAKE = 2, "failed"  # the user's or the machine's, in one sentence (`errors.told`)
    STOPPED = 74, "stopped"  # on request, after a whole checkpoint; it stays stopped
    PREEMPTED = 75, "stopped"  # the same: whoever started it is to start it again; EX_TEMPFAIL says just that
    SUPERSEDED = 76, None  # a later incarnation of the job has the run; nothing more was written
    HUNG = 77, "failed"  # a rank fell silent
    NO_PROGRESS = 78, "failed"  # queued again and again from the same step, as `slurm/common.sh` counts
    NOT_FINITE = 79, "failed"  # too many steps in a row without a finite loss and gradient
    LOST = 80, "failed"  # a rank has gone without a word


class Reason(IntEnum):
    """Why a run is asked to stop; of several the largest counts.

    Attributes:
        words: "Stopped by ...".
        exit_code: what it leaves with.
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
