"""A row of the doctor's table."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """What follows for training."""

    OK = "ok"
    SLOWER = "will be slower"
    BROKEN = "will not work"


@dataclass(frozen=True)
class Row:
    """What was looked at, what was found there, what follows, and what to do about it."""

    check: str
    found: str
    verdict: Verdict = Verdict.OK
    advice: str = ""
