"""Earlier claims about replaced-token detection, measured again: the effect of lambda, RTD's share of the gradient, and
whether the discriminator uses z.

    python -m studies.effect_claims run share      # $DIFFCSE_MODELS/wiki-mini on $DIFFCSE_DATA, for 104 steps
    python -m studies.effect_claims run z          # the same, `sampled` and `official`, for 156 steps
    python -m studies.effect_claims run dose       # the embedded example at growing lambda, seed 1
    python -m studies.effect_claims report

Each run is one process of one thread. After each run a row is added to docs/results/effect_claims.jsonl. Existing rows
are not made again. A run that is asked to stop (TERM) leaves a row of its measurements so far, and continues the next
time. `studies.effect` has the paired arms; docs/results/effect.md has the results.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from studies.effect import COMMON as OF_EFFECT
from studies.effect import ROOT, add, train
from studies.wiki_mini import SEEDS, name_of, read
from studies.wiki_mini import overrides as of_wiki_mini

ROWS = ROOT / "docs" / "results" / "effect_claims.jsonl"
# clipping and lambda: first with the recipe's clipping, the most informative first; then without, as in
# `studies.effect`
DOSES = [*(("1", dose) for dose in ("0", "1", "50", "0.05", "10", "0.3", "0.005")), ("0", "0"), ("0", "1")]
WIKI_MINI = ("1e-4", "0.05", "0.30")  # learning rate, lambda, masking ratio
REFUTED = 0.5  # points; an effect is refuted if its interval lies within +- this (docs/results/effect.md)
OLD = ROOT / "docs" / "results" / "wiki_mini.jsonl"
WINNERS = {"lambda0": ("1e-4", "0", "0.30"), "sampled": ("1e-4", "0.05", "0.15"), "official": ("1e-4", "0.05", "0.30")}
EVERY = "objective.parameter_share_every"
STOPPED = 143  # the exit code of a run that was asked to stop
EVALUATED = (100, 150, 200, 312)  # steps
SHOWN = (0, 10, 17, 20, 34, 50, 51, 68, 85, 100, 102, 200, 300)  # steps that were done before the step shown
WINDOWS = ((0, 9), (10, 29), (30, 51), (52, 77), (78, 103))  # steps that were done before the steps of a window
LOGGED = ("gradient_share", "gradient_cosine", "parameter_share", "parameter_cosine")
FOUND = ("dev_spearman", "dev_rtd_auroc", "dev_rtd_skill", "dev_rtd_z_gain")


def runs(kind: str) -> dict[str, list[str]]:
    """For each run's name, the recipe and the overrides."""
    if kind == "share":
        # with this schedule the learning rate does not depend on the number of steps
        short = ["log_every=1", f"{EVERY}=17", "max_steps=104", "optimizer.schedule=constant", "evaluation.data=null"]
        return {
            "share/wiki-mini lambda 0.05/seed42": ["bert_base_sts", *of_wiki_mini("sampled", WIKI_MINI, 42), *short]
        }
    if kind == "z":
        return {
            f"z/wiki-mini {objective}/seed42": [
                "bert_base_sts",
                *of_wiki_mini(objective, WIKI_MINI, 42),
                "max_steps=156",
            ]
            for objective in ("sampled", "official")
        }
    return {f"dose/clip {clip}, lambda {dose}/seed1": _dose(clip, dose) for clip, dose in DOSES}


def _dose(clip: str, dose: str) -> list[str]:
    clipped, measured = [f"optimizer.clip={clip}"], [f"{EVERY}=10", "log_every=1"]
    added = [*(clipped if clip != "0" else []), *(measured if clip != "0" and dose != "0" else [])]
    return ["quickstart", *OF_EFFECT["embedded"], f"objective.rtd_weight={dose}", *added, "seed=1"]


def make(name: str, recipe: list[str], folder: Path) -> None:
    """Train and add the row."""
    run = folder / name.replace("/", "-").replace(" ", "_")
    print(name, flush=True)
    ended = train(run, recipe[0], recipe[1:])
    if ended.returncode not in (0, STOPPED):
        ended.check_returncode()
    add(ROWS, name, row_of(recipe, run))


def row_of(recipe: list[str], run: Path) -> dict[str, Any]:
    """The row of a run; for a stopped run, of the part that it did."""
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    result = run / "result.json"
    return {
        "recipe": [_without_paths(value) for value in recipe],
        "whole": result.is_file(),
        "steps": metrics[-1]["step"],
        "best": json.loads(result.read_text(encoding="utf-8")).get("best") if result.is_file() else None,
        "evaluations": [[row["step"], *(row.get(key) for key in FOUND)] for row in metrics if FOUND[0] in row],
        "gradients": [[row["step"], *(row.get(key) for key in LOGGED)] for row in metrics if LOGGED[0] in row],
        "seconds": [[row["step"], row["training_seconds"]] for row in metrics if "training_seconds" in row],
    }


def seeds_needed(deviation: float, width: float = REFUTED) -> int:
    """Number of differences with this standard deviation that give a 95% interval of less than +- `width`."""
    return next(n for n in range(2, 10**6) if stats.t.ppf(0.975, n - 1) * deviation / np.sqrt(n) < width)


def deviations(measure: Callable[[str], float]) -> dict[str, tuple[float, float]]:
    """Standard deviations of the difference between two objectives of the small backbone, with three seeds each.

    Returns:
        For each pair's name, the deviation of the differences between runs of one seed, and the deviation that
        differences between independent runs would have, from the two objectives' own variances.
    """
    names = {objective: [name_of(objective, winner, seed) for seed in SEEDS] for objective, winner in WINNERS.items()}
    found = {objective: np.array([measure(name) for name in of_seeds]) for objective, of_seeds in names.items()}
    return {
        f"{one} - {other}": (
            float(np.std(found[one] - found[other], ddof=1)),
            float(np.sqrt(np.var(found[one], ddof=1) + np.var(found[other], ddof=1))),
        )
        for one, other in itertools.combinations(found, 2)
    }


def report() -> None:
    """Print Markdown tables."""
    rows = read(ROWS)
    print("| run | " + " | ".join(f"step {step}" for step in EVALUATED) + " | best | AUROC, last | z gain, last |")
    print("|---|" + "---|" * (len(EVALUATED) + 3))
    for name in (name for name in runs("dose") if name in rows):
        best, found = rows[name]["best"], {point[0]: point for point in rows[name]["evaluations"]}
        along = [found[step][1] if step in found else None for step in EVALUATED]
        cells = [_cell(value, 3) for value in (*along, best and best["dev_spearman"])]
        last = found[max(found)]
        print(f"| {name} | {' | '.join([*cells, _cell(last[2], 3), _cell(last[4], 5)])} |")
    print("\n| run | step | share in z | share in parameters | cosine in parameters |\n|---|---|---|---|---|")
    for name, row in rows.items():
        for step, in_z, _, share, cosine in row["gradients"]:
            if share is not None and step - 1 in SHOWN:
                print(f"| {name} | {step - 1} | {in_z:.2%} | {share:.2%} | {cosine:+.3f} |")
    print("\n| run | steps | share in z: median | least | most |\n|---|---|---|---|---|")
    for name, row in _of("share", rows):
        for first, last in WINDOWS:
            shares = [in_z for step, in_z, *_ in row["gradients"] if first < step <= last + 1]
            print(f"| {name} | {first} to {last} | {np.median(shares):.2%} | {min(shares):.2%} | {max(shares):.2%} |")
    print("\n| run | step | AUROC | z gain, nats per word |\n|---|---|---|---|")
    for name, row in _of("z", rows):
        for step, _, auroc, _, gain in row["evaluations"]:
            print(f"| {name} | {step} | {auroc:.4f} | {gain:+.5f} |")
    print("\n| run | steps with the measurement | seconds of such a step by those of its neighbours |\n|---|---|---|")
    for name, row in rows.items():
        ratios = costs(row)
        if ratios:
            print(f"| {name} | {len(ratios)} | {np.median(ratios):.2f} |")
    old = read(OLD)
    tables = {
        "STS-B dev": lambda name: old[name]["best"]["dev_spearman"],
        "mean of seven": lambda name: old[f"{name} tests"]["tests"]["mean of seven"],
    }
    print("\n| difference, measure | by seed | seeds needed | independent | seeds needed |\n|---|---|---|---|---|")
    for title, measure in tables.items():
        for pair, both in deviations(measure).items():
            cells = [cell for deviation in both for cell in (f"{deviation:.2f}", str(seeds_needed(deviation)))]
            print(f"| {pair}, {title} | {' | '.join(cells)} |")


def _of(kind: str, rows: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(name, row) for name, row in rows.items() if name.startswith(f"{kind}/")]


def costs(row: dict[str, Any]) -> list[float]:
    """Seconds of each step with the measurement over the mean of the two steps beside it, without the first step."""
    seconds, share = dict(row["seconds"]), LOGGED.index("parameter_share") + 1
    measured = [found[0] for found in row["gradients"] if found[share] is not None]
    return [
        2 * seconds[step] / (seconds[step - 1] + seconds[step + 1])
        for step in measured
        if {step - 1, step + 1} <= seconds.keys()
    ]


def _without_paths(override: str) -> str:
    """The override with folders of this machine replaced by the variables that name them."""
    for name in ("DIFFCSE_MODELS", "DIFFCSE_DATA"):
        if os.environ.get(name):
            override = override.replace(os.environ[name], f"${name}")
    return override


def _cell(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("kind", choices=("dose", "share", "z"))
    run.add_argument("--runs", type=Path, default=Path("runs/effect_claims"))
    commands.add_parser("report")
    arguments = parser.parse_args()
    if arguments.command == "report":
        return report()
    arguments.runs.mkdir(parents=True, exist_ok=True)
    for name, recipe in runs(arguments.kind).items():
        if not read(ROWS).get(name, {}).get("whole"):
            make(name, recipe, arguments.runs)
    return None


if __name__ == "__main__":
    main()
