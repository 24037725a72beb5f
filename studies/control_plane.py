"""How long does a step wait for the ranks' control messages, by the number of ranks?

    python -m studies.control_plane                   # 2 to 64 ranks on this machine; some minutes
    python -m studies.control_plane --table           # from the existing rows

Ranks are processes that connect over gloo as in train.py. In place of a step they sleep, so that even many of them
leave the cores idle. Three ways are timed in turn: an exchange at every step that the step waits for, an exchange at
every step that the next step reads, and `Supervision.tick`, which exchanges once a second. A watchdog runs throughout.
Rows go to docs/results/control_plane.jsonl, a table to the screen.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from diffcse_scale.distributed import Agreement, agree, barrier, gather_objects, is_main
from diffcse_scale.foundation.environment import environment
from diffcse_scale.rendezvous import join
from diffcse_scale.runs.directory import RunDirectory
from diffcse_scale.supervision.supervision import Supervision
from diffcse_scale.supervision.watchdog import Watchdog
from tests.support.forks import Fork, wait_for_all
from tests.support.ranks import places

ROOT = Path(__file__).parents[1]
ROWS = ROOT / "docs" / "results" / "control_plane.jsonl"
RANKS = (2, 4, 8, 16, 32, 64)
WAYS = ("at every step, waited for", "at every step, read at the next", "once a second, read a second later")
SECONDS = 8.0  # of steps for each way; the first two, in which the pace is found, do not count


def pace(world_size: int) -> float:
    """Seconds of a step; it must be long enough that the ranks leave this machine's cores idle most of the time."""
    return 0.02 if world_size <= 16 else 0.1


def timed(watcher: Supervision, way: str, step: float) -> list[float]:
    """Seconds that each of this rank's steps has waited."""
    on_its_way = Agreement(0, 0)
    taken, warm, end = [], time.monotonic() + 2.0, time.monotonic() + SECONDS
    number = 0
    # all ranks do the same number of steps
    while not (number % 10 == 0 and agree(time.monotonic() > end)[0]):
        time.sleep(step)
        began = time.perf_counter()
        if way == WAYS[2]:
            watcher.tick("training")
        else:
            on_its_way.answer()
            on_its_way = Agreement(0, 0)
            if way == WAYS[0]:
                on_its_way.answer()
        if time.monotonic() > warm:
            taken.append(time.perf_counter() - began)
        number += 1
    return taken


def work(folder: Path, world_size: int) -> None:
    """The work of one rank; the main rank writes the rows."""
    join("gloo", 120)
    run, rows = RunDirectory(folder), []
    with Watchdog(folder / "hang", 600.0) as watchdog:
        watcher = Supervision(run, watchdog)
        for way in WAYS:
            barrier()
            of_ranks = gather_objects(timed(watcher, way, pace(world_size)))
            ticks = [seconds for taken in of_ranks for seconds in taken]
            row = {"ranks": world_size, "way": way, "step_ms": pace(world_size) * 1e3, "ticks": len(ticks)}
            row |= {"median_ms": median(ticks) * 1e3, "mean_ms": sum(ticks) / len(ticks) * 1e3}
            row["p99_ms"] = sorted(ticks)[len(ticks) * 99 // 100] * 1e3
            rows.append({**row, "load_average": round(os.getloadavg()[0], 2)})
        barrier()
    if is_main():
        (folder / "rows.json").write_text(json.dumps(rows))
    barrier()


def measure(world_size: int) -> list[dict[str, Any]]:
    """One row for each way."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        variables = {"OMP_NUM_THREADS": "1", **os.environ}
        forks = [
            Fork(*(work, folder, world_size), output=folder / "said", environment={**variables, **place})
            for place in places(world_size)
        ]
        if wait_for_all(forks):
            raise SystemExit((folder / "said").read_text())
        rows: list[dict[str, Any]] = json.loads((folder / "rows.json").read_text())
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Milliseconds that a step waits: median, mean and 99th percentile over all ranks' steps."""
    lines = ["| ranks | step, ms | " + " | ".join(WAYS) + " |", "|---" * (2 + len(WAYS)) + "|"]
    for world_size in sorted({row["ranks"] for row in rows}):
        found = {row["way"]: row for row in rows if row["ranks"] == world_size}
        cells = [
            f"{row['median_ms']:.3f}, {row['mean_ms']:.3f}, {row['p99_ms']:.2f}" for row in map(found.get, WAYS) if row
        ]
        lines.append(f"| {world_size} | {next(iter(found.values()))['step_ms']:.0f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--ranks", type=int, nargs="+", default=RANKS)
    parser.add_argument(
        "--table", action="store_true", help="Print the table of the existing rows and measure nothing."
    )
    arguments = parser.parse_args()
    if not arguments.table:
        found: list[dict[str, Any]] = [{"environment": environment()}]
        for world_size in arguments.ranks:
            found += measure(world_size)
            print(f"{world_size} ranks are measured", flush=True)
        arguments.rows.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    _, *rows = [json.loads(line) for line in arguments.rows.read_text(encoding="utf-8").splitlines()]
    print(table(rows))


if __name__ == "__main__":
    main()
