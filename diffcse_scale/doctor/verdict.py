"""A row of the doctor's table."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """The consequence for training."""

    OK = "ok"
    SLOWER = "will be slower"
    BROKEN = "will not work"


@dataclass(frozen=True)
class Row:
    """What was checked, what was found, the consequence, and what to do about it."""

    check: str
    found: str
    verdict: Verdict = Verdict.OK
    advice: str = ""
