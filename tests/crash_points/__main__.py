"""Crash programs at every one of their file-system events: `python -m tests.crash_points`; a row of a table for each.

What is done is kept in --folder: the same command goes on where it was. After a change of the program: another folder.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

from diffcse_scale.cli import app
from tests.crash_points.cases import CACHE, CASES, write_world
from tests.crash_points.disk import MODELS
from tests.crash_points.trial import Trial

HEAD = f"| program | events | {' | '.join(MODELS)} | violations | seconds |\n|---|---|{'---|' * (len(MODELS) + 2)}"


def main() -> None:
    """Print a row for each case, and every violation."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash_points", description=__doc__)
    parser.add_argument(
        "--case", choices=list(CASES), action="append", help="May be given several times (default: all)."
    )
    parser.add_argument("--percent", type=int, default=100, help="Share of the states per case (default: 100).")
    parser.add_argument("--seed", default="0", help="Seed of the choice of states.")
    parser.add_argument("--jobs", type=int, default=2, help="Runs at a time (default: 2).")
    parser.add_argument("--folder", type=Path, default=Path("build/crash_points"))
    options = parser.parse_args()
    folder: Path = options.folder.resolve()
    if not (folder / "world" / CACHE).exists():
        write_world(folder / "world")
        app(["prepare", "--recipe", str(folder / "world" / "toy.yaml")], standalone_mode=False)
    rows, broken = [HEAD], 0
    for name in options.case or CASES:
        began = time.monotonic()
        trial = Trial(name, folder / "world", folder / name.replace(", ", "-").replace(" ", "-"))
        trial.record()
        states = trial.sample(options.percent, options.seed)
        bad = 0
        for state, found in trial.all_violations(states, options.jobs):
            bad += bool(found)
            for sentence in found:
                print(f"{name}: {state}: {sentence}", flush=True)
        tried = Counter(state.model for state in states)
        numbers = " | ".join(str(tried[model]) for model in MODELS)
        rows.append(f"| {name} | {trial.points()} | {numbers} | {bad} | {time.monotonic() - began:.0f} |")
        print(rows[-1], flush=True)
        broken += bad
    print("\n" + "\n".join(rows))
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
