"""What the rounds of a soak share: the uninterrupted run, the current one, and the row that a round fills in."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.soak.checks import Truth
from tests.soak.kills import END, START, TRAINING
from tests.soak.launch import Launch
from tests.soak.world import STEPS, Run, make_world


@dataclass
class Row:
    """What happened in a round, as the report has it.

    Attributes:
        run: which run folder.
        victim: the process that was ended, if it was one.
        phase: when.
        state: what `status.json` said then; "starting" before this launch had the run.
        begun: steps begun until then, counted from the start of the run; None before the first of this launch.
        code: what the main launcher left with; of two incarnations the older's.
        resumed: the checkpoint that was there before, of two incarnations before the newer began.
        newest: the checkpoint that is there now.
        lost: steps that were begun and have to be done again.
        deviation: largest of a number in `metrics.jsonl` from the uninterrupted run's, relative where that is above 1.
        finished: whether the run has come to its end.
    """

    round: int
    kind: str
    run: int
    victim: str = ""
    phase: str = ""
    state: str = ""
    begun: int | None = None
    code: int | None = None
    resumed: int = 0
    newest: int = 0
    lost: int = 0
    deviation: float = 0.0
    finished: bool = False
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        when = f"{self.phase}, {f'step {self.begun}' if self.begun else 'no step'} ({self.state})" if self.phase else ""
        end = "finished" if self.finished else f"now {self.newest:>2}, lost {self.lost}"
        return (
            f"round {self.round:>2}  run {self.run}  {self.kind:<29}{self.victim:<14} {when:<35} code {self.code!s:<4}"
            f" from {self.resumed:>2}, {end:<15}{self.seconds:4.0f} s  {'; '.join(self.violations) or 'ok'}"
        )


class Bench:
    """Runs one after another, each continued until it has finished, and the uninterrupted one.

    Args:
        folder: for everything that is written.
        seed: of the kinds, the victims and the moments. When exactly a process is hit depends on the machine too.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.rng = folder, random.Random(seed)
        self.recipe = make_world(folder / "world")
        self.number = self.launches = 0
        self.run = Run(folder / "uninterrupted")
        launch = self.launch()
        launch.wait_until(lambda: launch.find("rank 0"), 300)
        appeared = time.time()
        if code := launch.process.wait():
            raise SystemExit(f"The uninterrupted run ended with {code}:\n{launch.log()}")
        self.truth = Truth.of(self.run, launch)
        first, *_, last = (line["began"] for line in launch.steps())
        finished = (self.run.path / "result.json").stat().st_mtime
        # how long the phases last: a rank's start-up (the first takes twice as long as those that find its caches), a
        # step, the end after the last step has begun
        self.seconds = {START: (first - appeared) / 2, TRAINING: (last - first) / (STEPS - 1), END: finished - last}
        self.next_run()

    def next_run(self) -> None:
        """Begin with another folder."""
        self.number += 1
        self.run = Run(self.folder / f"run-{self.number:02d}")

    def launch(self, *options: str, pause: float = 0.0, variables: Mapping[str, str] | None = None) -> Launch:
        """Begin or continue the current run."""
        self.launches += 1
        records = self.folder / "launches" / f"{self.launches:03d}"
        return Launch(self.recipe, self.run.path, records, *options, pause=pause, variables=variables)
