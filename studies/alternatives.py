"""Compare DiffCSE with what else a user could train: sentence-transformers' SimCSE, TSDAE and pairs.

    python -m studies.alternatives train      # adds a row to alternatives.jsonl after each run; --seed 42: its own
    python -m studies.alternatives score      # adds a row for each model that has none yet
    python -m studies.alternatives report     # the tables of docs/results/alternatives.md on standard output

Existing rows are not measured again. Seeds may run side by side.

This plan was written before the first run:

- One backbone (the embedded one), mean pooling, 32 tokens, float32, AdamW, one schedule (`COMMON`), 80 steps of 64.
  For each seed all arms have the same text: `SENTENCES` sentences of the grammar, in one pass. The arm `pairs` gets
  half of them, each with another wording, so the number of sentences is the same. It passes over them twice.
- The learning rate is the quickstart's, which was chosen for DiffCSE. It is not tuned for any arm. The runs at `RATES`
  show, with one seed, whether the order of the arms depends on it.
- The last model counts; nothing is chosen on any pairs. The statistic is Spearman x 100 on `PAIRS` graded pairs of
  scenes that no training text has. We report the mean over three seeds with Student's 95% interval. DiffCSE and InfoNCE
  alone draw the same random numbers and are compared seed by seed. All others share only text and backbone, and are
  compared by Welch's interval.
- Cost is measured for a whole process, from its start to the model folder: processor time (user and system) and the
  largest resident memory. A run of one step shows the cost of the start.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffcse_scale.embedded import backbone_path
from diffcse_scale.embedded.grammar import graded_pairs, random_scene, training_sentences, word

ROOT = Path(__file__).parents[1]
SEEDS = (42, 43, 44)
SENTENCES, PAIRS, PAIRS_SEED = 5120, 3000, 1
RATE, RATES = 3e-4, (1e-4, 1e-3)
COMMON: dict[str, Any] = {"batch": 64, "warmup": 0.1, "max_length": 32, "pooling": "mean"}
OURS = {"DiffCSE": [], "InfoNCE alone": ["objective.rtd_weight=0"]}  # overrides of the recipe `quickstart`
THEIRS = {"SimCSE": "simcse", "TSDAE": "tsdae", "pairs": "pairs"}
UNTRAINED = "before training"
Row = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One training process. `steps` is -1 for the whole text."""

    arm: str
    seed: int
    rate: float = RATE
    steps: int = -1

    @property
    def name(self) -> str:
        return f"{self.arm}, rate {self.rate:g}, seed {self.seed}" + (", one step" if self.steps == 1 else "")


def runs() -> Iterator[Run]:
    """All runs, the most important first."""
    for seed in SEEDS:
        yield from (Run(arm, seed) for arm in (*OURS, *THEIRS))
    yield from (Run(arm, SEEDS[0], steps=1) for arm in (*OURS, *THEIRS))
    yield from (Run(arm, SEEDS[0], rate) for rate in RATES for arm in (*OURS, *THEIRS))


def pairs(count: int, seed: int) -> list[tuple[str, str]]:
    """Pairs of the first sentences of `training_sentences`, each with another wording of its scene."""
    rng, again = random.Random(f"training {seed}"), random.Random(f"again {seed}")
    found: dict[str, str] = {}
    while len(found) < count:
        scene = random_scene(rng)
        if scene.held_out:
            continue
        sentence = word(scene, rng)
        wordings = (word(scene, again) for _ in range(50))
        found.setdefault(sentence, next((other for other in wordings if other != sentence), sentence))
    return list(found.items())


def write_text(folder: Path, arm: str, seed: int) -> Path:
    """Write the file that an arm trains on."""
    folder.mkdir(parents=True, exist_ok=True)
    if arm == "pairs":
        rows, file = ["\t".join(pair) for pair in pairs(SENTENCES // 2, seed)], folder / f"pairs-{seed}.tsv"
    else:
        rows, file = training_sentences(SENTENCES, seed), folder / f"sentences-{seed}.txt"
    file.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return file


def command(run: Run, text: Path, output: Path) -> list[str]:
    if run.arm in THEIRS:
        training = {
            **COMMON,
            "method": THEIRS[run.arm],
            "backbone": str(backbone_path()),
            "text": str(text),
            "output": str(output),
            "seed": run.seed,
            "epochs": 2 if run.arm == "pairs" else 1,
            "learning_rate": run.rate,
            "steps": run.steps,
        }
        return [sys.executable, "-m", "studies.baselines.sentence_transformers_training", json.dumps(training)]
    fields = {
        "seed": run.seed,
        "data.files": text,
        "data.limit": "null",
        "data.max_length": COMMON["max_length"],
        "batch.sentences": COMMON["batch"],
        "optimizer.learning_rate": run.rate,
        "optimizer.warmup": COMMON["warmup"],
        "model.pooling": COMMON["pooling"],
        "evaluation.data": "null",
        "max_steps": "null" if run.steps < 0 else run.steps,
    }
    changes = [*(f"{name}={value}" for name, value in fields.items()), *OURS[run.arm]]
    start = [sys.executable, str(ROOT / "train.py"), "--deepspeed_config", "zero0", "--recipe", "quickstart"]
    return [*start, "--output", str(output), *changes]


def cost(arguments: list[str], log: Path) -> dict[str, float]:
    """Run a process and return its cost; it inherits only little of this process's memory."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            arguments, cwd=ROOT, stdout=output, stderr=output, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"A training process ended with {process.returncode}; {log} says why.")
    return {"processor_seconds": usage.ru_utime + usage.ru_stime, "peak_memory_mb": usage.ru_maxrss / 1024}


def train(folder: Path, rows: Path, seeds: list[int]) -> None:
    """Do every run that has no row yet; an interrupted run starts again, because its cost is measured as a whole."""
    about = None
    for run in runs():
        if run.seed not in seeds or run.name in named(rows, "cost"):
            continue
        about = about or environment_of_a_process()
        output = (folder / run.name.replace(", ", "-").replace(" ", "-")).resolve()
        shutil.rmtree(output, ignore_errors=True)
        text = write_text(folder, run.arm, run.seed).resolve()
        found = cost(command(run, text, output), folder / f"{output.name}.log")
        append(rows, {"kind": "cost", "name": run.name}, found, about)


def environment_of_a_process() -> Row:
    """Machine and versions, from another process, so that torch does not enlarge this one."""
    program = "from diffcse_scale.foundation.environment import *; import json; print(json.dumps(environment()))"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found: Row = json.loads(subprocess.check_output([sys.executable, "-c", program], cwd=ROOT, env=environment))
    return found


def score(folder: Path, rows: Path) -> None:
    """Add Spearman x 100 on the graded pairs for the model of each complete run, and for the backbone."""
    from diffcse_scale.evaluation.sentence_encoder import encode_with
    from diffcse_scale.evaluation.sts import spearman
    from diffcse_scale.foundation.environment import environment
    from diffcse_scale.model_folder.load import load_model

    graded = graded_pairs(PAIRS, PAIRS_SEED)
    whole = {run.name: run for run in runs() if run.steps < 0 and run.name in named(rows, "cost")}
    for name in (UNTRAINED, *whole):
        if name in named(rows, "score"):
            continue
        output = folder / name.replace(", ", "-").replace(" ", "-")
        model, _ = load_model(backbone_path() if name == UNTRAINED else output, COMMON["pooling"], device="cpu")
        model.max_seq_length = COMMON["max_length"]
        found = {"spearman": spearman(encode_with(model, batch_size=128, show_progress_bar=False), graded)}
        append(rows, {"kind": "score", "name": name}, found, environment())


def append(rows: Path, key: Row, found: Row, about: Row) -> None:
    print(key["kind"], key["name"], found, flush=True)
    with rows.open("a", encoding="utf-8") as file:
        file.write(json.dumps({**key, **found, "environment": about}) + "\n")


def named(rows: Path, kind: str) -> dict[str, Row]:
    """Rows of one kind, by name."""
    lines = rows.read_text(encoding="utf-8").splitlines() if rows.is_file() else []
    return {row["name"]: row for row in map(json.loads, lines) if row["kind"] == kind}


def report(rows: Path) -> None:
    import numpy as np
    from scipy import stats

    costs, scores = named(rows, "cost"), {name: row["spearman"] for name, row in named(rows, "score").items()}

    def of(arm: str) -> list[float]:
        return [scores[name] for seed in SEEDS if (name := Run(arm, seed).name) in scores]

    print("| arm | Spearman x 100 | against DiffCSE | processor time, s | of it the start | peak memory, MB |")
    print("|---|---|---|---|---|---|")
    print(f"| {UNTRAINED} | {scores[UNTRAINED]:.2f} | | | | |")
    for arm in (*OURS, *THEIRS):
        values = of(arm)
        middle = np.mean(values)
        low, high = stats.t.interval(0.95, len(values) - 1, middle, stats.sem(values))
        test = stats.ttest_rel if arm in OURS else stats.ttest_ind
        options = {} if arm in OURS else {"equal_var": False}
        difference = ""
        if arm != "DiffCSE":
            bounds = test(values, of("DiffCSE"), **options).confidence_interval(0.95)
            difference = f"{middle - np.mean(of('DiffCSE')):+.2f} [{bounds.low:+.2f}, {bounds.high:+.2f}]"
        spent = [costs[Run(arm, seed).name] for seed in SEEDS]
        seconds, memory = (np.mean([row[key] for row in spent]) for key in ("processor_seconds", "peak_memory_mb"))
        start = costs.get(Run(arm, SEEDS[0], steps=1).name, {}).get("processor_seconds")
        cells = [f"{middle:.2f} [{low:.2f}, {high:.2f}]", difference, f"{seconds:.0f}"]
        cells += [f"{start:.0f}" if start else "not measured", f"{memory:.0f}"]
        print(f"| {arm} | {' | '.join(cells)} |")
    print(f"\n| seed {SEEDS[0]}, rate | {' | '.join((*OURS, *THEIRS))} |\n|---|{'---|' * (len(OURS) + len(THEIRS))}")
    for rate in sorted((*RATES, RATE)):
        cells = [scores.get(Run(arm, SEEDS[0], rate).name) for arm in (*OURS, *THEIRS)]
        print(f"| {rate:g} | {' | '.join('not run' if cell is None else f'{cell:.2f}' for cell in cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "score", "report"))
    parser.add_argument("--seed", type=int, action="append", choices=SEEDS)
    parser.add_argument("--runs", type=Path, default=Path("runs/alternatives"))
    parser.add_argument("--rows", type=Path, default=ROOT / "docs" / "results" / "alternatives.jsonl")
    arguments = parser.parse_args()
    if arguments.what == "train":
        train(arguments.runs, arguments.rows, arguments.seed or list(SEEDS))
    elif arguments.what == "score":
        score(arguments.runs, arguments.rows)
    else:
        report(arguments.rows)


if __name__ == "__main__":
    main()
