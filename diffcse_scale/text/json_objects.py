"""Reads the objects of JSON files as text: one per line, or the elements of one array."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.text.remote import origin
from diffcse_scale.text.table_layout import USUAL_COLUMNS, open_text

CHUNK = 2**20  # characters of an array that are read at once
NOT_THE_END = 16  # characters: for an error at least so far from the end of the text read, more text would not help
BETWEEN = re.compile(r"[\s,]*")


def is_array(name: str) -> bool:
    """Whether the file begins with a bracket, as a JSON array does."""
    with open_text(name, newline=None) as file:
        while chunk := file.read(CHUNK):
            if chunk := chunk.lstrip():
                return bool(chunk.startswith("["))
    return False


def lines_of(name: str) -> Iterator[str]:
    """The lines without their line endings, or the elements of the array, each as it is written.

    Raises:
        InputError: the array is truncated, malformed or followed by something; names the file and the element.
    """
    if is_array(name):
        yield from _elements(name)
        return
    with open_text(name, newline=None) as file:
        for line in file:
            yield line.removesuffix("\n")


def _elements(name: str) -> Iterator[str]:
    """The elements of the array. Only the current one is in memory."""
    decoder, number = json.JSONDecoder(), 0
    with open_text(name, newline=None) as file:
        text = ""
        while not text.strip():
            text = file.read(CHUNK)
        text, place = text.lstrip(), 1
        while True:
            place = _match_end(text, place)
            if text.startswith("]", place):
                if (text[place + 1 :] + file.read(CHUNK)).strip():
                    raise InputError(
                        f"Corpus file {origin(name)}: something follows its JSON array; write one array of objects, "
                        "or one object per line."
                    )
                return
            end, reason = _end_of_value(decoder, text, place)
            if end is None or end == len(text):
                more = file.read(max(CHUNK, len(text) - place)) if not reason else ""
                if not more:
                    reason = reason or "the file ends before the array does"
                    raise InputError(
                        f"Corpus file {origin(name)}, object {number + 1} of its array: {reason}; fix it, or write "
                        "one object per line."
                    )
                text, place = text[place:] + more, 0
                continue
            number += 1
            yield text[place:end]
            place = end


def _match_end(text: str, place: int) -> int:
    found = BETWEEN.match(text, place)
    assert found is not None
    return found.end()


def _end_of_value(decoder: json.JSONDecoder, text: str, place: int) -> tuple[int | None, str]:
    """The end of the value that begins at `place`, or None if it has no end; and why, if more text would not help."""
    try:
        _, end = decoder.raw_decode(text, place)
        return end, ""
    except RecursionError:
        return None, "nested too deeply"
    except json.JSONDecodeError as error:
        cut = error.pos > len(text) - NOT_THE_END or error.msg.startswith("Unterminated string")
        return None, "" if cut else error.msg[0].lower() + error.msg[1:]


def rows_inside(record: dict[str, Any]) -> str | None:
    """The key of a list with several objects in an object without a text of its own, such as SQuAD's `data`.

    None if there is no such list, or if a usual column of text says that the object is itself a row.
    """
    if any(isinstance(record.get(name), str) for name in USUAL_COLUMNS):
        return None
    lists = ((key, value) for key, value in record.items() if isinstance(value, list) and len(value) > 1)
    return next((key for key, value in lists if all(isinstance(one, dict) for one in value)), None)


def object_of(line: str) -> dict[str, Any] | None:
    """The JSON object in a line; None if the line is anything else."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
