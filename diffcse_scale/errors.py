"""The one exception for mistakes a user can mend."""

from __future__ import annotations


class InputError(Exception):
    """A run that cannot work: one sentence that says what is wrong, where, and what to do.

    Programs print the message without a traceback and leave with exit code 2.
    """
