"""What is fuzzed: surfaces, and the inputs that each is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hypothesis.strategies import SearchStrategy

from tests.support.command_line import diffcse_scale


class Answer(NamedTuple):
    """An exit code, and what was printed."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Case:
    """A command line, and the files of the folder that it is typed in.

    Attributes:
        truth: what is right where it is accepted; None where that is not known.
    """

    arguments: tuple[str, ...]
    files: Mapping[str, bytes] = field(repr=False, default_factory=dict)
    stdin: bytes = b""
    truth: Any = None


Act = Callable[[Case], Answer]
Right = Callable[[Case, Answer], str]


def command(case: Case) -> Answer:
    """`diffcse-scale ARGUMENTS` in this process and folder."""
    done = diffcse_scale(*case.arguments)
    return Answer(done.returncode, done.stdout, done.stderr)


@dataclass(frozen=True)
class Surface:
    """A place where the outside comes in.

    Attributes:
        cases: what it is given.
        right: what is wrong with an answer of exit code 0, asked in the case's folder; empty if nothing is.
        act: what gives the answer in this process. Both are functions of a module, which a worker can import.
    """

    name: str
    cases: SearchStrategy[Case]
    right: Right
    act: Act = command
