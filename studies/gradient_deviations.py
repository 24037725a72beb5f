"""Deviation of the objective's gradients from one process's gradients, by number of ranks, ZeRO stage and precision.

    python -m studies.gradient_deviations

The cases are in tests/test_distributed.py, which checks them against tolerances; this program prints the figures.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import test_distributed as cases
from tests.support.ranks import run_ranks


def main() -> None:
    truth = cases._all_objectives()
    sampled = truth["sampled-batchnorm-pairs"]
    for ranks in (2, 4):
        found = _run(cases._all_objectives, ranks)
        for name in truth:
            print(f"float64, {ranks} ranks, {name}: {cases._largest_deviation(found[name], truth[name]):.1e}")
    for fault, found in _run(cases._all_faults, 2).items():
        print(f"fault, 2 ranks, {fault}: {cases._largest_deviation(found, sampled):.2f}")
    nonzero = [name for name, gradient in sampled.items() if gradient.norm() > 1e-8]
    one_rank = _run(cases._engine_gradients, 1)
    for ranks in (1, 2, 4):
        engine = one_rank if ranks == 1 else _run(cases._engine_gradients, ranks)
        for stage in cases.STAGES:
            single = cases._largest_deviation(engine[stage, "fp32"], sampled)
            mine, other = ({n: e[stage, "bf16"][n] for n in nonzero} for e in (engine, one_rank))
            half = cases._largest_deviation(mine, other)
            print(f"ZeRO-{stage}, {ranks} ranks: fp32 {single:.1e} (to float64), bf16 {half:.1e} (to one rank in bf16)")


def _run(work: Callable[[], Any], ranks: int) -> Any:
    return run_ranks(work, ranks, Path(tempfile.mkdtemp()))[0]


if __name__ == "__main__":
    main()
