"""Inputs of a surface, drawn by a seed, and what became of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.case import Case, Surface
from tests.fuzz.contract import Worker


class Breach(NamedTuple):
    """A case whose answer broke the contract."""

    problem: str
    case: Case

    @property
    def kind(self) -> str:
        """The same for those that probably have one cause."""
        return re.sub(r"\d+", "N", self.problem)[:60]

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(map(len, self.case.files.values()))


class Tally(NamedTuple):
    """Of many inputs: how many, how many were accepted, and the breaches."""

    inputs: int
    accepted: int
    breaches: list[Breach]

    def kinds(self) -> dict[str, tuple[int, Breach]]:
        """How many breaches there are of each kind, and the smallest case."""
        kinds: dict[str, list[Breach]] = {}
        for breach in self.breaches:
            kinds.setdefault(breach.kind, []).append(breach)
        return {kind: (len(some), min(some, key=lambda breach: breach.size)) for kind, some in kinds.items()}

    def __str__(self) -> str:
        lines = [f"{self.inputs:,} inputs, {self.accepted:,} accepted, {len(self.breaches):,} breaches"]
        for count, (problem, case) in self.kinds().values():
            files = {name: content[:300] for name, content in case.files.items() if len(case.files) < 3}
            lines.append(f"  {count} x {problem}\n      {case.arguments} {case.stdin!r} {files}")
        return "\n".join(lines)


def draw(surface: Surface, inputs: int, number: int, ask: Callable[[Case], None]) -> None:
    """Call `ask` with so many inputs of a surface, drawn by the seed `number`."""
    options = settings(
        max_examples=inputs,
        derandomize=False,  # `number` decides
        phases=[Phase.generate],
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    seed(number)(options(given(surface.cases)(ask)))()


def fuzz(surface: Surface, inputs: int, number: int, worker: Worker) -> Tally:
    """What becomes of so many inputs of a surface, one after another in the worker."""
    counts, breaches = [0, 0], []

    def ask(case: Case) -> None:
        accepted, problem = worker.judge(surface.act, surface.right, case)
        counts[0] += 1
        counts[1] += accepted
        if problem:
            breaches.append(Breach(problem, case))

    draw(surface, inputs, number, ask)
    return Tally(*counts, breaches)
