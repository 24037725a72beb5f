"""DiffCSE and its ablation on real text: a small grid, chosen on STS-B dev, then three seeds of each winner.

    export DIFFCSE_DATA=... DIFFCSE_MODELS=...
    python studies/wiki_mini.py train     # grid, then seeds; adds a row to wiki_mini.jsonl after each run
    python studies/wiki_mini.py report    # tables on standard output and the picture of the curves

Backbone and generator are `$DIFFCSE_MODELS/wiki-mini`. The corpus is the first 20,032 sentences (313 global batches of
64) of `$DIFFCSE_DATA/corpus`. Every run is `deepspeed --num_gpus 2 train.py` under ZeRO-2 on CPUs. Existing rows are
not run again, so the work may be spread over several days and machines; each row names its machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from diffcse_scale.evaluation.sts import MEAN, evaluate_sts
from diffcse_scale.evaluation.tasks import load_sts
from diffcse_scale.foundation.environment import environment
from diffcse_scale.model_folder.load import load_model

ROOT = Path(__file__).parents[1]
Candidate = tuple[str, str, str]  # learning rate, lambda, masking ratio
SEEDS = (42, 43, 44)
COMMON = [
    "epochs=1",
    "data.limit=20032",
    "evaluation.every=52",
    "evaluation.max_length=64",
]
# the learning rate is chosen at lambda 0 (1e-4 won), then lambda and masking ratio at that rate; `official` is the
# slowest and has one candidate less
GRID: dict[str, list[Candidate]] = {
    "lambda0": [("3e-5", "0", "0.30"), ("1e-4", "0", "0.30")],
    "sampled": [("1e-4", "0.005", "0.30"), ("1e-4", "0.05", "0.30"), ("1e-4", "0.05", "0.15")],
    "official": [("1e-4", "0.005", "0.30"), ("1e-4", "0.05", "0.30")],
}


def name_of(objective: str, candidate: Candidate, seed: int) -> str:
    rate, weight, masking = candidate
    return f"{objective}-lr{rate}-lambda{weight}-mask{masking}-seed{seed}"


def overrides(objective: str, candidate: Candidate, seed: int) -> list[str]:
    """Overrides of the recipe `bert_base_sts` for a run."""
    rate, weight, masking = candidate
    official = objective == "official"
    backbone = f"{os.environ['DIFFCSE_MODELS']}/wiki-mini"
    return [
        *COMMON,
        f"name={name_of(objective, candidate, seed)}",
        f"seed={seed}",
        f"model.encoder={backbone}",
        f"model.generator={backbone}",
        f"data.files={os.environ['DIFFCSE_DATA']}/corpus/*.txt.gz",
        f"evaluation.data={os.environ['DIFFCSE_DATA']}/sts",
        f"objective.fidelity={'official' if official else 'sampled'}",
        f"objective.rtd_weight={weight}",
        f"objective.masking_ratio={masking}",
        f"optimizer.learning_rate={rate}",
        f"batch.length_groups={1 if official else 2}",
    ]


def run(runs: Path, rows: Path, objective: str, candidate: Candidate, seed: int) -> None:
    """Do one training run and add its row, unless the row exists."""
    name = name_of(objective, candidate, seed)
    if name in read(rows):
        return
    launch(runs / name, overrides(objective, candidate, seed))
    metrics = [json.loads(line) for line in (runs / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    result = json.loads((runs / name / "result.json").read_text(encoding="utf-8"))
    row = {
        "name": name,
        "seed": seed,
        "before": result["before"],
        "best": result["best"],
        "curve": [[line["step"], line["dev_spearman"]] for line in metrics if "dev_spearman" in line],
        "rtd_auroc": result.get("dev_rtd_auroc"),
        "rtd_z_gain": result.get("dev_rtd_z_gain"),
        "environment": environment(),
    }
    append(rows, row)


def test(runs: Path, rows: Path, objective: str, candidate: Candidate, seed: int) -> None:
    """Add a row with the seven test sets of a run; trains the run again if its model no longer exists."""
    name = name_of(objective, candidate, seed)
    if f"{name} tests" not in read(rows):
        launch(runs / name, overrides(objective, candidate, seed))
        append(rows, {"name": f"{name} tests", "tests": measure(runs / name / "model"), "environment": environment()})


def launch(folder: Path, changes: list[str]) -> None:
    """Run `deepspeed --num_gpus 2 train.py`, unless the run in `folder` has finished."""
    if (folder / "result.json").is_file():
        return
    command = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", "2", str(ROOT / "train.py")]
    command += ["--deepspeed_config", str(ROOT / "ds_configs" / "zero2.json"), "--recipe", "bert_base_sts"]
    command += ["--output", str(folder), *changes]
    if (folder / "recipe.yaml").is_file():  # an earlier launch was killed
        command.append("--resume")
    print(folder.name, flush=True)
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def measure(folder: Path, pooling: str | None = None) -> dict[str, float | None]:
    """Spearman x 100 on all tasks of `$DIFFCSE_DATA/sts`."""
    model, _ = load_model(folder, pooling)
    model.max_seq_length = 64
    tasks = load_sts(Path(os.environ["DIFFCSE_DATA"]) / "sts")
    results = evaluate_sts(lambda sentences: np.asarray(model.encode(sentences, batch_size=64)), tasks)
    return {**{score.name: score.value for score in results.scores}, "mean of seven": results[MEAN].value}


def append(rows: Path, row: dict[str, Any]) -> None:
    with rows.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def read(rows: Path) -> dict[str, dict[str, Any]]:
    """Rows by name."""
    if not rows.is_file():
        return {}
    return {row["name"]: row for row in map(json.loads, rows.read_text(encoding="utf-8").splitlines())}


def chosen(found: dict[str, dict[str, Any]], objective: str) -> Candidate:
    """The candidate with the best STS-B dev score under the first seed."""
    return max(GRID[objective], key=lambda c: found[name_of(objective, c, SEEDS[0])]["best"]["dev_spearman"])


def train(runs: Path, rows: Path) -> None:
    backbone = Path(os.environ["DIFFCSE_MODELS"]) / "wiki-mini"
    for pooling in ("cls", "mean"):
        if f"untrained-{pooling}" not in read(rows):
            tests = measure(backbone, pooling)
            append(rows, {"name": f"untrained-{pooling}", "tests": tests, "environment": environment()})
    for objective, candidates in GRID.items():
        for candidate in candidates:
            run(runs, rows, objective, candidate, SEEDS[0])
    for seed in SEEDS:
        for objective in GRID:
            winner = chosen(read(rows), objective)
            run(runs, rows, objective, winner, seed)
            test(runs, rows, objective, winner, seed)


def interval(values: list[float]) -> str:
    """Mean and half the 95% interval of Student's t."""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{np.mean(values):.2f} ± {half:.2f}"


def report(rows: Path) -> None:
    found = read(rows)
    winners = {objective: chosen(found, objective) for objective in GRID}
    results = {f"untrained, {pooling}": [found[f"untrained-{pooling}"]["tests"]] for pooling in ("cls", "mean")}
    for objective, candidate in winners.items():
        names = [name_of(objective, candidate, seed) for seed in SEEDS]
        title = f"{objective} (lr {candidate[0]}, lambda {candidate[1]}, mask {candidate[2]})"
        results[title] = [found[f"{name} tests"]["tests"] for name in names if f"{name} tests" in found]
    tasks = list(found["untrained-cls"]["tests"])
    lines = [f"| mean ± 95% interval over seeds | {' | '.join(tasks)} |", f"|---|{'---|' * len(tasks)}"]
    for title, tests in results.items():
        cells = [interval([test[task] for test in tests]) for task in tasks]
        lines.append(f"| {title}, n = {len(tests)} | {' | '.join(cells)} |")
    lines += ["", "| grid (seed 42) | best STS-B dev | at step | RTD balanced accuracy |", "|---|---|---|---|"]
    for objective, candidates in GRID.items():
        for candidate in candidates:
            row = found[name_of(objective, candidate, SEEDS[0])]
            rtd = row.get("rtd_balanced_accuracy")  # only rows of earlier versions have it
            cells = f"{row['best']['dev_spearman']:.2f} | {row['best']['step']} | {f'{rtd:.3f}' if rtd else '-'}"
            lines.append(f"| {row['name']} | {cells} |")
    print("\n".join(lines))
    _draw_curves(found, winners, rows.with_suffix(".png"))
    _draw_gains(results, rows.with_name(rows.stem + "_sts.png"))


def _draw_gains(results: dict[str, list[dict[str, float]]], file: Path) -> None:
    """Draw the test scores before training (the better pooling) and after it, one mark per seed."""
    before = results["untrained, mean"][0]
    (after,) = (tests for title, tests in results.items() if title.startswith("sampled"))
    tasks = [task for task in before if task not in ("STS-B dev", "SICK-R trial")]
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    places = range(len(tasks))
    means = [np.mean([test[task] for test in after]) for task in tasks]
    axes.hlines(places, [before[task] for task in tasks], means, color="0.8", linewidth=5)
    axes.plot([before[task] for task in tasks], places, "o", color="0.45", label="pretrained backbone, mean pooling")
    for test in after:
        axes.plot([test[task] for task in tasks], places, "|", color="C0", markersize=11, alpha=0.8)
    axes.plot(means, places, "o", color="C0", label=f"after DiffCSE, {len(after)} seeds and their mean")
    axes.set_yticks(places, tasks)
    axes.invert_yaxis()
    axes.set(xlabel="Spearman x 100")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    figure.savefig(file, dpi=150)


def _draw_curves(found: dict[str, dict[str, Any]], winners: dict[str, Candidate], file: Path) -> None:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for colour, (objective, candidate) in enumerate(winners.items()):
        for seed in SEEDS:
            if row := found.get(name_of(objective, candidate, seed)):
                label = objective if seed == SEEDS[0] else None
                steps, scores = zip(*row["curve"], strict=True)
                axes.plot(steps, scores, color=f"C{colour}", alpha=0.8, marker="o", markersize=3, label=label)
    axes.set(xlabel="step (64 sentences each)", ylabel="STS-B dev, Spearman x 100", title="wiki-mini")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "report"))
    parser.add_argument("--runs", type=Path, default=Path("runs/wiki_mini"))
    parser.add_argument("--rows", type=Path, default=ROOT / "docs" / "results" / "wiki_mini.jsonl")
    arguments = parser.parse_args()
    if arguments.what == "train":
        train(arguments.runs, arguments.rows)
    else:
        report(arguments.rows)


if __name__ == "__main__":
    main()
