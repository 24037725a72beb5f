"""Give every surface many inputs, and print what broke the contract: `python -m tests.fuzz --inputs 2000 --seed 0`.

With --processes, each input is typed into a shell of its own: slow, and nothing of this process can help.
"""

from __future__ import annotations

import argparse
import sys
import time

from tests.fuzz.contract import Worker
from tests.fuzz.drawing import fuzz
from tests.fuzz.processes import fuzz_processes
from tests.fuzz.surfaces import SURFACES


def main() -> None:
    """Print a line for each surface, and an example of each kind of breach."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument(
        "--surface", choices=sorted(SURFACES), action="append", help="May be given several times (default: all)."
    )
    parser.add_argument("--inputs", type=int, default=2_000, help="Inputs per surface (default: 2000).")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", action="store_true", help="Run each input in its own process.")
    options = parser.parse_args()
    breaches, worker = 0, Worker()
    for name in options.surface or SURFACES:
        began = time.monotonic()
        drawn = SURFACES[name], options.inputs, options.seed
        tally = fuzz_processes(*drawn) if options.processes else fuzz(*drawn, worker)
        print(f"{name}, {time.monotonic() - began:.0f} s: {tally}", flush=True)
        breaches += len(tally.breaches)
    worker.close()
    sys.exit(bool(breaches))


if __name__ == "__main__":
    main()
