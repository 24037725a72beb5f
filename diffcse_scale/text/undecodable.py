"""Bytes that are not UTF-8, kept apart from a U+FFFD that the text itself contains.

Readers put `MARK` in their place: a code point that Unicode keeps for programs' own use and out of
text.
"""

from __future__ import annotations

import codecs

MARK = "\ufdd0"
ERRORS = "diffcse-mark"
"""For `errors=` of what decodes: a `MARK` where "replace" would put a U+FFFD."""

codecs.register_error(ERRORS, lambda error: (MARK, error.end))  # type: ignore[attr-defined]


def undecodable(text: str) -> bool:
    """Whether it holds a `MARK`, or a NUL, which is a sign of UTF-16."""
    return MARK in text or "\0" in text


def shown(text: str) -> str:
    """The text with U+FFFD for what is not UTF-8 in it."""
    return text.replace(MARK, "\ufffd")
