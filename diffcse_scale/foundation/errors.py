"""Errors that end a program with one sentence and an exit code, and helpers for their messages."""

from __future__ import annotations

import difflib
import errno
import os
import re
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from diffcse_scale.foundation.exit_codes import ExitCode
from diffcse_scale.foundation.secrets import masked

LONGEST = 80  # characters of a value in a message
_ENDLESS = re.compile(r"\S{300,}")  # longer than any name that a file system accepts


class InputError(Exception):
    """A run that cannot work. The message is one sentence: what is wrong, where, and what to do.

    Programs print the message without a traceback and exit with code 2. Secrets are masked and endless words cut.
    """

    def __str__(self) -> str:
        return _ENDLESS.sub(lambda word: brief(word[0]), masked(super().__str__()))


class RunEnded(Exception):
    """A run that was stopped or stopped itself: one sentence, printed without a traceback, and an exit code.

    Every rank raises it.

    Args:
        message: what the user is told.
        exit_code: an `ExitCode`, or its number.

    Raises:
        ValueError: no `ExitCode` has this number.

    Example:
        >>> from diffcse_scale.training import RunEnded
        >>> RunEnded("A hundred steps are enough.", 74).exit_code.name
        'STOPPED'
    """

    def __init__(self, message: str, exit_code: ExitCode | int) -> None:
        super().__init__(message, exit_code)  # both, so that the error can be pickled and sent to other ranks
        self.message, self.exit_code = message, ExitCode(exit_code)  # type: ignore[call-arg]

    def __str__(self) -> str:
        return self.message


class PeerFailed(RunEnded):
    """Another rank has failed and this one lost the connection to it; has that rank's message and exit code.

    Args:
        told_here: whether this rank reports it to the user on behalf of all remaining ranks.
    """

    def __init__(self, message: str, exit_code: ExitCode, told_here: bool) -> None:
        super().__init__(message, exit_code)
        self.told_here = told_here


def first_line(error: BaseException) -> str:
    """First line of a library error's message, or its class name if the message is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def one_line(error: BaseException, longest: int = 300) -> str:
    """An error's whole message on one line, cut to `longest`; its class name if the message is empty."""
    return " ".join(str(error).split())[:longest] or type(error).__name__


def system_reason(error: OSError) -> str:
    """The system's reason, in the form that continues a sentence: "permission denied"."""
    return (error.strerror or str(error)).lower()


# advice for system errors; those of the disk are recognized even when a library wraps them
_DISK = {
    errno.ENOSPC: "free disk space",
    errno.EDQUOT: "free disk space, or have the quota raised",
    errno.EIO: "check the system's log, because the disk may be failing",
    errno.EROFS: "give a place that can be written, or mount this one writable",
    errno.ESTALE: "check that the file server's folder is still mounted",
}
_TORCH = ("PytorchStreamWriter failed writing", "unexpected pos")  # torch's writer reports disk errors only like this
_ADVICE = {
    **_DISK,
    errno.EACCES: "check its permissions, or give another place",
    errno.EPERM: "check its permissions, or give another place",
    errno.ENOENT: "restore it, or give another place",
    errno.EMFILE: "raise `ulimit -n`",
    errno.ENFILE: "raise the machine's limit of open files",
}


def error_of_disk(error: BaseException) -> OSError | None:
    """The disk's error inside `error`, even if a library has wrapped it in its own; None for other errors."""
    if isinstance(error, InputError | RunEnded):
        return None
    if isinstance(error, OSError) and error.errno in _DISK:
        plain = error.strerror == os.strerror(error.errno)  # not a library's own text
        return error if plain else OSError(error.errno, os.strerror(error.errno), error.filename)
    # torch's writer raises a RuntimeError while it handles the file's error
    wrapped = error.__cause__ or (error.__context__ if isinstance(error, RuntimeError) else None)
    if wrapped is not None and (found := error_of_disk(wrapped)) is not None:
        return found
    text = str(error)
    if any(words in text for words in _TORCH):
        return OSError(errno.ENOSPC, "torch cannot write it, usually because the disk is full")
    number = next((number for number in _DISK if os.strerror(number) in text), None)
    return None if number is None else OSError(number, os.strerror(number))


def disk_is_full(error: BaseException) -> bool:
    """Whether an error means a full disk or quota, whatever its class, because libraries wrap it in their own."""
    return (found := error_of_disk(error)) is not None and found.errno in (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def disk_errors_at(path: str | Path) -> Iterator[None]:
    """Add `path` to disk errors that are raised inside and name no path themselves, as most do not."""
    try:
        yield
    except Exception as error:
        found = error_of_disk(error)
        if found is None or (found is error and found.filename is not None):
            raise
        raise OSError(found.errno, found.strerror, found.filename or os.fspath(path)) from error


def told(error: BaseException) -> str | None:
    """One sentence for an error caused by the user or the machine; None for a bug in the program.

    Unreadable or unwritable files, a full or failing disk, and too little memory count as the machine's errors.
    """
    if isinstance(error, InputError | RunEnded):
        return str(error)
    if not isinstance(error, Exception):
        return None
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return f"There is not enough memory ({brief(first_line(error), 200)}); give it more, or request less at a time."
    found = error if isinstance(error, OSError) and error.filename is not None else error_of_disk(error)
    if found is None:
        return None
    if found.filename is None:
        return f"{brief(first_line(error), 300)}; {remedy(found)}."
    places = (os.fsdecode(name) for name in (found.filename, found.filename2) if name is not None)
    return f"{brief(' to '.join(places), 300)}: {found.strerror or first_line(found)}; {remedy(found)}."


def remedy(error: OSError) -> str:
    """What a user can do about a system error, in the form that continues a sentence."""
    return _ADVICE.get(error.errno or 0, "fix that")


def exit_code_of(error: BaseException) -> ExitCode:
    """Exit code of a process that ends with `error`."""
    if isinstance(error, RunEnded):
        return error.exit_code
    return ExitCode.FAILED if told(error) is None else ExitCode.MISTAKE


_repr = reprlib.Repr()
_repr.maxlevel = 3
_repr.maxdict = _repr.maxlist = _repr.maxtuple = _repr.maxset = 10
_repr.maxstring = _repr.maxlong = _repr.maxother = LONGEST


def quoted(value: object) -> str:
    """`repr(value)` for a message: one line, cut to 80 characters, with nested values abbreviated."""
    try:
        return brief(repr(value[:LONGEST]) if isinstance(value, str | bytes) else _repr.repr(value))
    except Exception:  # an integer with too many digits, or a class whose repr fails
        return f"a value of type {type(value).__name__}"


def brief(text: str, length: int = LONGEST) -> str:
    """`text` for a message: one line without control characters, cut to `length`."""
    line = "".join(letter if letter.isprintable() else " " for letter in text[: length + 1])
    return line if len(line) <= length else line[: length - 3] + "..."


def nearest(word: str, known: Iterable[str]) -> str:
    """` (did you mean X?)` with the word of `known` that is most similar to `word`, or an empty string."""
    match = difflib.get_close_matches(word[:LONGEST], list(known), n=1, cutoff=0.5)
    return f" (did you mean {match[0]}?)" if match else ""


def either(names: Sequence[str]) -> str:
    """Join names as `a, b or c`."""
    return " or ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))
