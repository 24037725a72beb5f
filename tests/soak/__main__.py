"""Ends a toy run again and again in the worst moment, continues it, and compares it with the uninterrupted run.

    python -m tests.soak --rounds 50 --seed 0
    python -m tests.soak --rounds 50 --seed 0 --report docs/results/soak.jsonl

Each round launches two ranks through the `deepspeed` launcher with `--auto-resume`, waits for a random moment of
start-up, training, evaluation, writing of a checkpoint or the end, and does something to a rank, to a launcher, to all,
or begins a second incarnation of the job (`kills.py`). When no process is left it looks (`checks.py`): whether

- the launch went on from the newest checkpoint, left out no step, and met the uninterrupted run's sentences;
- no more work was lost than since the last checkpoint, and none where the run is documented to save it;
- every step is written once, with the uninterrupted losses; every checkpoint with its final name is whole;
- the exit code is the documented one, and nothing is left running.

A run that comes near its end is left to end: its result and weights are those of the uninterrupted run. A round is a
line on the screen and, with `--report`, a row there. Leaves with 1 if anything was not as it must be.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from diffcse_scale.foundation.environment import environment
from tests.soak.bench import Bench, Row
from tests.soak.kills import WEIGHTS
from tests.soak.rounds import ROUNDS, UNHARMED, deck, soak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="Seed of kinds, victims and moments.")
    parser.add_argument("--kinds", nargs="+", choices=sorted(ROUNDS), help="Run these kinds, one after another.")
    parser.add_argument("--report", type=Path, help="Append a row per round to this .jsonl file.")
    parser.add_argument("--folder", type=Path, help="Keep everything here (default: a temporary folder).")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="soak-"))
    bench = Bench(folder, arguments.seed)
    about = {"rounds": arguments.rounds, "seed": arguments.seed, "environment": environment()}
    report(arguments.report, about)
    rows = []
    for row in soak(bench, arguments.kinds or deck(arguments.rounds, bench.rng)):
        rows.append(row)
        print(row, flush=True)
        report(arguments.report, asdict(row))
    print(table(rows))
    bad = sum(bool(row.violations) for row in rows)
    rounds, runs = sum(row.kind not in UNHARMED for row in rows), len({row.run for row in rows if row.finished})
    print(f"{rounds} rounds, {bench.launches} launches, {runs} runs finished: {bad} rounds with violations")
    if bad:
        sys.exit(f"Logs and run folders are in {folder}.")
    if not arguments.folder:
        shutil.rmtree(folder)


def table(rows: list[Row]) -> str:
    """A line a kind, in Markdown."""
    columns = ["what was done", "rounds", *WEIGHTS, "exit codes", "steps lost at most", "rounds with violations"]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for kind in ROUNDS:
        if of_kind := [row for row in rows if row.kind == kind]:
            phases = [str(sum(row.phase == phase for row in of_kind) or "") for phase in WEIGHTS]
            codes = ", ".join(str(code) for code in sorted({row.code for row in of_kind if row.code is not None}))
            lost, bad = max(row.lost for row in of_kind), sum(bool(row.violations) for row in of_kind)
            cells = [kind, str(len(of_kind)), *phases, codes, str(lost), str(bad)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def report(file: Path | None, row: dict[str, Any]) -> None:
    """Append a row."""
    if file is not None:
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
