"""The two ways in which a run ends early and in order."""

from __future__ import annotations

from diffcse_scale.exit_codes import ExitCode


class InputError(Exception):
    """A run that cannot work: one sentence that says what is wrong, where, and what to do.

    Programs print the message without a traceback and leave with exit code 2.
    """


class RunEnded(Exception):
    """A run that was stopped, or stopped itself: one sentence, printed without a traceback, and the exit code.

    Every rank raises it.
    """

    def __init__(self, message: str, exit_code: ExitCode) -> None:
        super().__init__(message, exit_code)  # both, so that one rank's can be sent to the others
        self.message, self.exit_code = message, exit_code

    def __str__(self) -> str:
        return self.message
