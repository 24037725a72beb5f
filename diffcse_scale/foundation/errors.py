"""The two ways in which a run ends early and in order."""

from __future__ import annotations

import difflib
import errno
import os
import re
import reprlib
from collections.abc import Iterable, Sequence

from diffcse_scale.foundation.exit_codes import ExitCode
from diffcse_scale.foundation.secrets import masked

LONGEST_VALUE = 80  # characters
_ENDLESS = re.compile(r"\S{300,}")  # longer than any name that a system takes
_brief = reprlib.Repr()
_brief.maxlevel, _brief.maxstring, _brief.maxother, _brief.maxlong = 3, LONGEST_VALUE, LONGEST_VALUE, LONGEST_VALUE


class InputError(Exception):
    """A run that cannot work: one sentence that says what is wrong, where, and what to do.

    Programs print the message without a traceback and leave with exit code 2. It has no secrets, and no endless word.
    """

    def __str__(self) -> str:
        return _ENDLESS.sub(lambda word: _cut(word[0]), masked(super().__str__()))


class RunEnded(Exception):
    """A run that was stopped, or stopped itself: one sentence, printed without a traceback, and the exit code.

    Every rank raises it.
    """

    def __init__(self, message: str, exit_code: ExitCode) -> None:
        super().__init__(message, exit_code)  # both, so that one rank's can be sent to the others
        self.message, self.exit_code = message, exit_code

    def __str__(self) -> str:
        return self.message


def shown(value: object) -> str:
    """A value as a message quotes it: as Python writes it, cut to 80 characters, however large it is."""
    try:
        text = _brief.repr(value)
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        text = f"a {type(value).__name__} of very many digits"
    return _cut(text)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."


def first_line(error: BaseException) -> str:
    """Of what an error of a library says, or its class where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def disk_is_full(error: BaseException) -> bool:
    """Whether that is what an error says, whatever its class: libraries wrap it in their own."""
    return os.strerror(errno.ENOSPC) in str(error)


def exit_code_of(error: BaseException) -> ExitCode:
    """What a process leaves with that ends by `error`."""
    if isinstance(error, RunEnded):
        return error.exit_code
    mistake = isinstance(error, InputError) or (isinstance(error, Exception) and disk_is_full(error))
    return ExitCode.MISTAKE if mistake else ExitCode.FAILED


def nearest(word: str, known: Iterable[str]) -> str:
    """` (did you mean X?)` for the word of `known` that is most like `word`, or nothing."""
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean {match[0]}?)" if match else ""


def either(names: Sequence[str]) -> str:
    """`a, b or c`."""
    return " or ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))
