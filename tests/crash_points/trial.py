"""One case: the program is recorded once, then each state that a crash could have left is gone on with."""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from subprocess import TimeoutExpired

from diffcse_scale.foundation.durable import write_durably
from diffcse_scale.foundation.run_files import RESULT
from tests.crash_points.cases import CASES, Case
from tests.crash_points.disk import MODELS, Disk, Point
from tests.crash_points.promises import PROMISES, RUN
from tests.support.forks import Fork, run_program, wait_for_all
from tests.support.launch import ROOT, environment
from tests.support.ranks import places

RECORDED = Path(__file__).with_name("recorded.py")
PATIENCE = 300.0  # seconds for one run
END = "end"


@dataclass(frozen=True)
class State:
    """A tree that a crash leaves, by the first point that leaves it."""

    model: str
    tree: str
    point: Point

    def __str__(self) -> str:
        event = f"event {self.point.number} of rank {self.point.rank}" if self.point.number else "the end"
        return f"{self.model} before {event} ({self.point.what} {self.point.path})"


class Trial:
    """A case and its record.

    Args:
        name: in `CASES`.
        world: `write_world`'s, whose text is prepared.
        folder: for the work and the record.
    """

    def __init__(self, name: str, world: Path, folder: Path) -> None:
        self.case: Case = CASES[name]
        self._world, self._folder, self._work = world, folder, folder / "work"
        self._disk = Disk(self._work, folder / "store", PROMISES[self.case.promise])
        self.truth: dict[str, str] = {}

    def record(self) -> None:
        """Run the program to its end, unless that was done in this folder before."""
        done = self._folder / "recorded"
        if done.exists():
            self.truth = self.case.contents(self._work)
            return
        shutil.rmtree(self._work, ignore_errors=True)
        self._work.mkdir(parents=True)
        self.case.begin(self._world, self._work)
        self._disk.begin()
        variables = {"CRASH_FOLDER": str(self._work), "CRASH_STORE": str(self._folder / "store")}
        code, output = self._run(self._work, RECORDED, {**variables, "CRASH_PROMISE": self.case.promise})
        assert code == 0, output
        self._disk.end()
        self.truth = self.case.contents(self._work)
        done.touch()

    def points(self) -> int:
        """Events, the end included."""
        return len(self._disk.points())

    def states(self) -> list[State]:
        """Each tree once, by model; what had been promised when it was left last counts."""
        found: dict[tuple[str, str], State] = {}
        for point in self._disk.points():
            for model in MODELS:
                found[model, point.states[model]] = State(model, point.states[model], point)
        return list(found.values())

    def sample(self, percent: float, seed: str) -> list[State]:
        """So much of `states`, of each model, drawn; at least one of each."""
        draw, drawn = random.Random(seed), []
        for model in MODELS:
            states = [state for state in self.states() if state.model == model]
            drawn += draw.sample(states, max(1, round(len(states) * percent / 100)))
        return drawn

    def violations(self, state: State) -> Iterator[str]:
        """Go on from a state to the end: sentences of what is not as it must be."""
        with tempfile.TemporaryDirectory(dir=self._folder) as place:
            work = Path(place) / "work"
            self._disk.restore(state.tree, work)
            promised = state.point.promised
            if state.point.what == END and self.case.promise == "checkpoint" and not (work / RUN / RESULT).is_file():
                yield "the run had ended, and has no result"
            yield from self.case.kept(self._world, work, promised)
            try:
                code, output = self._run(work, self.case.program, {})
            except TimeoutExpired:
                yield "the next run does not end"
                return
            if code:
                yield f"the next run ends with {code}: {output[-1500:]}"
                return
            yield from self.case.resumed(output, promised)
            contents = self.case.contents(work)
            for name in sorted(contents.keys() | self.truth.keys()):
                if contents.get(name) != self.truth.get(name):
                    yield f"{name} is {contents.get(name)}, not {self.truth.get(name)}"

    def all_violations(self, states: list[State], jobs: int = 1) -> Iterator[tuple[State, list[str]]]:
        """Of many states, some at a time, in their order; what was found in this folder before is not tried again."""
        found = self._folder / "found"
        found.mkdir(exist_ok=True)

        def tried(state: State) -> list[str]:
            known = found / f"{state.model}-{state.tree}.json"
            if not known.exists():
                write_durably(json.dumps(list(self.violations(state))), known)
            sentences: list[str] = json.loads(known.read_text(encoding="utf-8"))
            return sentences

        with ThreadPoolExecutor(jobs) as pool:
            yield from zip(states, pool.map(tried, states), strict=True)

    def _run(self, work: Path, program: Path, variables: dict[str, str]) -> tuple[int, str]:
        """Exit code and output of a program; `RECORDED` takes the case's as its first argument."""
        arguments = self.case.arguments(self._world, work)
        first = [str(self.case.program)] if program == RECORDED else []
        with tempfile.NamedTemporaryFile("r") as output:
            forks = [
                Fork(
                    *(run_program, str(program), *first, *arguments),
                    **{"output": Path(output.name), "environment": {**environment(), **place, **variables}},
                    cwd=ROOT,
                )
                for place in places(self.case.ranks)
            ]
            code = wait_for_all(forks, PATIENCE)
            return code, output.read()
