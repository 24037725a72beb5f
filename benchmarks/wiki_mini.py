"""DiffCSE against its ablation on real text: a small grid chosen on STS-B dev, then three seeds of each winner.

    export DIFFCSE_DATA=... DIFFCSE_MODELS=...
    python benchmarks/wiki_mini.py train  --runs runs/wiki_mini     # grid, then seeds; finished runs are skipped
    python benchmarks/wiki_mini.py report --runs runs/wiki_mini --output docs/results/wiki_mini

Backbone and generator are `$DIFFCSE_MODELS/wiki-mini`, the corpus is the first 20,032 sentences (313 global batches of
64) of `$DIFFCSE_DATA/corpus`, every run is `deepspeed --num_gpus 2 train.py` under ZeRO-2 on CPUs. `report` measures
the seven test sets before and after and writes a table (CSV and Markdown) and the curves (PNG).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from scipy import stats

from diffcse_scale.evaluation.command import load_model
from diffcse_scale.evaluation.sts import STSResults, evaluate_sts
from diffcse_scale.evaluation.tasks import load_sts

ROOT = Path(__file__).parents[1]
SEEDS = (42, 43, 44)
COMMON = [
    "epochs=1",
    "data.limit=20032",
    "evaluation.every=52",
    "evaluation.max_length=64",
]
# objective -> candidates: (learning rate, lambda, masking ratio)
GRID: dict[str, list[tuple[str, str, str]]] = {
    "lambda0": [("1e-4", "0", "0.30"), ("2e-4", "0", "0.30")],
    "sampled": [("1e-4", "0.005", "0.30"), ("1e-4", "0.05", "0.30"), ("1e-4", "0.05", "0.15")],
    "official": [("1e-4", "0.005", "0.30"), ("1e-4", "0.05", "0.30"), ("1e-4", "0.05", "0.15")],
}


def name_of(objective: str, candidate: tuple[str, str, str], seed: int) -> str:
    rate, weight, masking = candidate
    return f"{objective}-lr{rate}-lambda{weight}-mask{masking}-seed{seed}"


def overrides(objective: str, candidate: tuple[str, str, str], seed: int) -> list[str]:
    """What a run changes in the recipe `bert_base_sts`."""
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


def run(runs: Path, objective: str, candidate: tuple[str, str, str], seed: int) -> None:
    """One training run, unless it has finished already."""
    folder = runs / name_of(objective, candidate, seed)
    if (folder / "result.json").is_file():
        return
    command = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", "2", str(ROOT / "train.py")]
    command += ["--deepspeed_config", str(ROOT / "ds_configs" / "zero2.json"), "--recipe", "bert_base_sts"]
    command += ["--output", str(folder), *overrides(objective, candidate, seed)]
    if (folder / "recipe.yaml").is_file():
        command.insert(command.index("--output"), "--resume")
    print(folder.name, flush=True)
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def result(runs: Path, objective: str, candidate: tuple[str, str, str], seed: int) -> dict[str, Any]:
    folder = runs / name_of(objective, candidate, seed)
    return {"folder": folder, **json.loads((folder / "result.json").read_text(encoding="utf-8"))}


def chosen(runs: Path, objective: str) -> tuple[str, str, str]:
    """The candidate with the best STS-B dev score under the first seed."""
    return max(GRID[objective], key=lambda c: result(runs, objective, c, SEEDS[0])["best"]["dev_spearman"])


def train(runs: Path) -> None:
    for objective, candidates in GRID.items():
        for candidate in candidates:
            run(runs, objective, candidate, SEEDS[0])
    for seed in SEEDS[1:]:
        for objective in GRID:
            run(runs, objective, chosen(runs, objective), seed)


def measure(folder: Path, pooling: str | None = None) -> STSResults:
    """All tasks of `$DIFFCSE_DATA/sts`."""
    model, _ = load_model(folder, pooling, Console(quiet=True))
    model.max_seq_length = 64
    tasks = load_sts(Path(os.environ["DIFFCSE_DATA"]) / "sts")
    return evaluate_sts(lambda sentences: np.asarray(model.encode(sentences, batch_size=64)), tasks)


def interval(values: list[float]) -> str:
    """Mean and half the 95% interval of Student's t."""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{np.mean(values):.2f} ± {half:.2f}"


def report(runs: Path, output: Path) -> None:
    rows: dict[str, list[STSResults]] = {}
    backbone = Path(os.environ["DIFFCSE_MODELS"]) / "wiki-mini"
    for pooling in ("cls", "mean"):
        rows[f"untrained, {pooling}"] = [measure(backbone, pooling)]
    for objective in GRID:
        candidate = chosen(runs, objective)
        title = f"{objective} (lr {candidate[0]}, lambda {candidate[1]}, mask {candidate[2]})"
        models = [result(runs, objective, candidate, seed)["folder"] / "model" for seed in SEEDS]
        rows[title] = [measure(model) for model in models]
    _write_tables(rows, runs, output)
    _draw(runs, output.with_suffix(".png"))


def _write_tables(rows: dict[str, list[STSResults]], runs: Path, output: Path) -> None:
    names = [score.name for score in next(iter(rows.values()))[0].scores]
    lines = [f"| | {' | '.join(names)} | mean of seven |", f"|---|{'---|' * (len(names) + 1)}"]
    with output.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["model", "seed", *names, "mean of seven"])
        for title, results in rows.items():
            cells = [[r[name].spearman for r in results] for name in names]
            means = [r.mean_of_seven or float("nan") for r in results]
            for seed, *values in zip(SEEDS, *cells, means, strict=False):
                writer.writerow([title, seed, *(f"{value:.4f}" for value in values)])
            lines.append(f"| {title} | {' | '.join(interval(values) for values in [*cells, means])} |")
    lines += ["", "| grid (seed 42) | best STS-B dev | step |", "|---|---|---|"]
    for objective, candidates in GRID.items():
        for candidate in candidates:
            best = result(runs, objective, candidate, SEEDS[0])["best"]
            lines.append(f"| {name_of(objective, candidate, 42)} | {best['dev_spearman']:.2f} | {best['step']} |")
    output.with_suffix(".table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def _draw(runs: Path, file: Path) -> None:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for colour, objective in enumerate(GRID):
        for seed in SEEDS:
            folder = result(runs, objective, chosen(runs, objective), seed)["folder"]
            rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            points = [(row["step"], row["dev_spearman"]) for row in rows if "dev_spearman" in row]
            label = objective if seed == SEEDS[0] else None
            axes.plot(*zip(*points, strict=True), color=f"C{colour}", alpha=0.8, marker="o", markersize=3, label=label)
    axes.set(xlabel="step (64 sentences each)", ylabel="STS-B dev, Spearman x 100", title="wiki-mini, three seeds each")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "report"))
    parser.add_argument("--runs", type=Path, default=Path("runs/wiki_mini"))
    parser.add_argument("--output", type=Path, default=Path("docs/results/wiki_mini"))
    arguments = parser.parse_args()
    if arguments.what == "train":
        train(arguments.runs)
    else:
        report(arguments.runs, arguments.output)


if __name__ == "__main__":
    main()
