"""Marks bytes that are not UTF-8, so that they differ from a U+FFFD that the text itself contains.

Readers replace such bytes by `MARK`, a code point that Unicode reserves for programs' internal use and that is never
in text.
"""

from __future__ import annotations

import codecs

MARK = "\ufdd0"
ERRORS = "diffcse-mark"
"""The `errors=` argument of decoders that puts a `MARK` where "replace" would put a U+FFFD."""

codecs.register_error(ERRORS, lambda error: (MARK, error.end))  # type: ignore[attr-defined]


def undecodable(text: str) -> bool:
    """Whether a text has a `MARK`, a NUL, a sign of UTF-16, or half of a surrogate pair, as JSON can escape."""
    if MARK in text or "\0" in text:
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def shown(text: str) -> str:
    """The text with a U+FFFD for each `MARK`."""
    return text.replace(MARK, "\ufffd")
