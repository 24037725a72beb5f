"""Time of the training step beside the official arithmetic and sentence-transformers, and by batch, length and ranks.

    export DIFFCSE_DATA=... DIFFCSE_MODELS=...
    python -m studies.step_times measure [--only base]   # adds rows to docs/results/step.jsonl; existing rows stay
    python -m studies.step_times curves                  # adds the losses of 300 steps of training, packed and padded
    python -m studies.step_times report                  # writes docs/results/step.md and step.png

Every row is a cell of `diffcse-scale benchmark step`, in its own processes. Rows that are compared come from one run on
one machine, one after another; nothing else should run beside them. Real text is the Wikipedia sentences of
`$DIFFCSE_DATA/corpus`, tokenized as for bert-base-uncased.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from diffcse_scale.benchmark.command import describe
from diffcse_scale.benchmark.grid import OURS, Cell
from diffcse_scale.benchmark.phases import PHASES
from diffcse_scale.benchmark.step_cell import measure
from diffcse_scale.foundation.environment import environment
from diffcse_scale.runs.metrics_file import MetricsFile

ROOT = Path(__file__).parents[1]
ROWS = ROOT / "docs" / "results" / "step.jsonl"
Row = dict[str, Any]
HALF = {"precision": "bf16", "generator_precision": "bf16"}
GROWTH_STEPS = 500
SIZES, LENGTHS = (4, 8, 16, 32, 64, 128, 256), (8, 16, 32, 64, 128, 256)


def cells() -> dict[str, list[tuple[Cell, int]]]:
    """The measured cells with their numbers of steps, by group."""
    corpus = sorted((Path(os.environ.get("DIFFCSE_DATA", "")) / "corpus").glob("*.txt.gz"))
    real = {
        "text": str(corpus[0]) if corpus else "the corpus",
        "tokenizer": f"{os.environ.get('DIFFCSE_MODELS', '')}/bert-base-uncased-tokenizer",
    }
    small = {"backbone": "bert-small"}
    mini = dict.fromkeys(("backbone", "tokenizer"), f"{os.environ.get('DIFFCSE_MODELS', '')}/wiki-mini")
    return {
        "base": [
            (Cell("official"), 3),
            (Cell(), 3),
            (Cell(generator_precision="bf16"), 3),
            (Cell(**HALF), 3),
            (Cell(compiled=True, **HALF), 3),
            (Cell(chunk=16), 2),
            (Cell(zero_stage=0), 3),
            (Cell(zero_stage=0, **HALF), 3),
            (Cell(zero_stage=0, compiled=True, **HALF), 3),
            (Cell(zero_stage=0, chunk=16), 2),
        ],
        "text": [
            (Cell("official", **real), 2),
            (Cell(zero_stage=0, **real), 3),
            (Cell(zero_stage=0, **real, **HALF), 4),
            (Cell(**real), 2),
            (Cell(**real, **HALF), 3),
        ],
        "contrastive": [(Cell("sentence-transformers", rtd_weight=0), 3), (Cell(rtd_weight=0, zero_stage=0), 3)],
        "growth": [
            (Cell(sentences=16, zero_stage=stage, packed=packed, **{**real, **mini}), GROWTH_STEPS)
            for stage, packed in itertools.product((0, 2), (True, False))
        ],
        "batch": [(Cell(sentences=size, **small), 5) for size in SIZES],
        "length": [(Cell(sentences=16, length=length, **small), 5) for length in LENGTHS],
        "ranks": [(Cell(sentences=size, ranks=2, **small), 5) for size in (16, 64, 256)],
    }


SEEDS, CURVE_STEPS, CURVE_END = (42, 43, 44), 300, 100


def curves(file: Path) -> None:
    """Add rows with the last losses of the quickstart on Wikipedia sentences, with and without what saves work."""
    corpus = sorted((Path(os.environ["DIFFCSE_DATA"]) / "corpus").glob("*.txt.gz"))[0]
    there = {(row["seed"], row["saves_work"]) for row in read(file) if row["group"] == "curves"}
    for seed, saves in itertools.product(SEEDS, (True, False)):
        if (seed, saves) in there:
            continue
        with tempfile.TemporaryDirectory() as folder:
            precision = "bfloat16" if saves else "float32"
            fields = {
                "seed": seed,
                "data.files": corpus,
                "data.limit": 20_032,
                "max_steps": CURVE_STEPS,
                "log_every": CURVE_END,
                "epochs": 100,
                "evaluation.data": "null",
                "batch.packed": str(saves).lower(),
                "model.generator_precision": precision,
            }
            command = [sys.executable, str(ROOT / "train.py"), "--recipe", "quickstart", "--output", f"{folder}/run"]
            subprocess.run([*command, *(f"{name}={value}" for name, value in fields.items())], check=True)
            *_, last = MetricsFile(Path(folder, "run", "metrics.jsonl")).rows()
        losses = {name: last[name] for name in ("loss", "contrastive", "rtd")}
        row = {"group": "curves", "seed": seed, "saves_work": saves, **losses, "environment": environment()}
        with file.open("a", encoding="utf-8") as output:
            output.write(json.dumps(row) + "\n")


def curve_table(rows: list[Row]) -> list[str]:
    """Table of the losses, one line per seed."""
    found = [row for row in rows if row["group"] == "curves"]
    lines = ["| seed | loss, packed, generator in bf16 | loss, padded, generator in fp32 |", "|---|---|---|"]
    for seed in SEEDS:
        pair = {row["saves_work"]: row["loss"] for row in found if row["seed"] == seed}
        if len(pair) == 2:
            lines.append(f"| {seed} | {pair[True]:.4f} | {pair[False]:.4f} |")
    return lines


def key(cell: Cell) -> dict[str, Any]:
    """The fields that distinguish rows; of text and backbone only the name counts, not the folder."""
    values = asdict(cell)
    names = {name: values[name] and Path(values[name]).name for name in ("text", "backbone")}
    return {**values, **names, "tokenizer": None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["measure", "curves", "report"])
    parser.add_argument("--only", action="append", choices=list(cells()))
    parser.add_argument("--rows", type=Path, default=ROWS)
    arguments = parser.parse_args()
    if arguments.what == "report":
        report(arguments.rows)
        return
    if arguments.what == "curves":
        curves(arguments.rows)
        return
    for group in arguments.only or cells():
        for cell, steps in cells()[group]:
            if find(read(arguments.rows), cell) is None:
                row = {"group": group, **measure(cell, steps), **key(cell), "environment": environment()}
                print(describe(cell), f"{row['step_seconds']:.2f} s, {row['peak_memory_gb']:.2f} GB", flush=True)
                with arguments.rows.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")


def read(rows: Path) -> list[Row]:
    return [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()] if rows.is_file() else []


def find(rows: list[Row], cell: Cell) -> Row | None:
    # a row without a field is older than the field, and was measured with its default
    return next((row for row in rows if key(cell).items() <= {**asdict(Cell()), **row}.items()), None)


def report(file: Path) -> None:
    """Write the page and its picture from the rows."""
    rows = read(file)
    parts = [HEAD.format(**about(rows))]
    if text := of_group(rows, "text"):
        parts += ["## Real text of at most 32 tokens\n", TEXT, *table(text), "", *phase_table(text), ""]
    if of_group(rows, "growth"):
        parts += ["## Memory over 500 steps\n", GROWTH, *growth_table(rows), ""]
    if found := of_group(rows, "contrastive"):
        parts += ["## The contrastive part alone\n", CONTRASTIVE, *table(found), "", *phase_table(found), ""]
    parts += ["## The same training\n", CURVES, *curve_table(rows), ""]
    parts += ["## Measured while freed memory was kept\n", KEPT]
    if found := of_group(rows, "base"):
        parts += ["### All sentences of 32 tokens\n", *table(found), "", *phase_table(found), ""]
    if of_group(rows, "batch"):
        parts += ["### Against batch, length and ranks\n", "![step.png](step.png)\n", *scaling_table(rows), "", TAIL]
        draw(rows, file.with_suffix(".png"))
    file.with_suffix(".md").write_text("\n".join(parts), encoding="utf-8")


def of_group(rows: list[Row], group: str) -> list[Row]:
    """Rows of a table: the baseline first, then sorted by ranks, sentences and length."""
    found = [row for row in rows if row["group"] == group]
    return sorted(found, key=lambda row: (row["implementation"] == OURS, row["ranks"], row["sentences"], row["length"]))


def series_of(rows: list[Row], group: str) -> list[Row]:
    """Rows of a series; a cell may belong to several groups."""
    return [row for cell, _ in cells()[group] if (row := find(rows, cell)) is not None]


def about(rows: list[Row]) -> dict[str, Any]:
    packages = rows[0]["environment"]["packages"]
    versions = ", ".join(f"{name} {packages[name]}" for name in ("torch", "transformers", "deepspeed"))
    machines = dict.fromkeys(row["environment"]["processor"] for row in rows)
    return {"machines": " and ".join(machines), "versions": versions, "python": rows[0]["environment"]["python"]}


HEAD = """# The training step

This page compares the time of a step with the official program's arithmetic in plain PyTorch
(`studies/baselines/official_step.py`) and with sentence-transformers' `MultipleNegativesRankingLoss`
(`studies/baselines/sentence_transformers_step.py`). Each row is the median of 2 to 5 steps after one warm-up step, in
its own process. The machine is shared: steps of one row differ by up to a fifth, and *matmul* shows how much of the
machine a row's process had.

<!-- only parsed: trains or measures for a long time -->

    python -m studies.step_times measure
    python -m studies.step_times curves
    python -m studies.step_times report

Machines, 2 cores, no GPU: {machines}. Python {python}, {versions}.

The networks have the shapes of bert-base (encoder and discriminator) and distilbert-base (generator), with random
weights. Some tables use `bert-small` of `benchmark step` and say so. A batch is 64 sentences in two views, on one rank.
*Of matmul rate* compares the arithmetic of a step (`model/arithmetic.py`) with a large product in the same precision
and process. *fp32* and *bf16* are the precision of products; weights and optimizer are float32 in all rows. Every
process leaves freed memory to the C library, unless a table says otherwise.
"""

TEXT = """All rows come from one run, one after another. Packed rows compute at most an eighth more tokens than are
real. On one rank ZeRO-2 has nothing to share: its flat copies of weights and gradients add 1.2 GB and cost a fifth of
the time in float32.
"""

CONTRASTIVE = """These steps have no replaced-token detection, and rows of 32 real tokens without padding. The two
programs do the same work, and ours also computes a projection.
"""

GROWTH = """The table shows the resident memory of wiki-mini, a BERT with 19M parameters that was made from a
supervised sentence encoder. It trains on Wikipedia sentences of at most 32 tokens: 16 per step, float32, one rank.
Other work ran on the machine.
"""

KEPT = """The tables below were measured on an AMD EPYC with a version that kept all memory it freed. That version is
faster in float32 by up to a fifth, but its memory grew without bound with packed rows. The tables show how the time is
divided and how it scales. Their float32 times and their memory are not those of the present version.
"""

CURVES = f"""The table shows the mean loss of the last {CURVE_END} of {CURVE_STEPS} steps of the quickstart's backbone
on Wikipedia text. Dropout draws other numbers in another layout, so the two columns differ as two seeds may.
"""

TAIL = """Growth is not linear at either end, for different reasons.

- **Few tokens.** AdamW takes 0.11 s for any batch. About as much of backward goes to the gradients of the weights
  themselves, which have the same size for any batch. Together they are 37% of the step at 4 sentences. From 16
  sentences of 32 tokens on, a step's time is proportional to its tokens.
- **Long sentences.** Attention grows with the square of the length. From 128 to 256 tokens, forward passes take 2.5
  times as long, and a token costs 16% more.
- **Large batches.** Only InfoNCE grows with the square of the batch, and at 256 sentences it takes 15 ms of 22.6 s. The
  step from 64 to 128 sentences is within the machine's variation: the rate of tokens at 256 is again that at 32.
- **Two ranks** share the two cores that one rank has alone. They cannot gain time here, but show the cost: at 16
  sentences 0.5 s for exchanging gradients and new weights (the latter in the optimizer's phase), a quarter of the step.
  That does not grow with the batch, and at 256 sentences two ranks take no longer than one.
"""


def name(row: Row) -> str:
    if row["implementation"] != OURS:
        return row["implementation"] + (f", {row['precision']}" if row["precision"] == "fp32" else "")
    parts = ["ours", row["precision"]]
    if row["rtd_weight"] and row["generator_precision"] != row["precision"]:
        parts.append(f"generator {row['generator_precision']}")
    parts += [f"chunks of {row['chunk']}"] if row["chunk"] else []
    parts += ["compiled"] if row.get("compiled") else []
    parts += [f"ZeRO-{row['zero_stage']}"] if row.get("zero_stage", 2) != 2 else []
    return ", ".join(parts + ([] if row["packed"] else ["padding kept"]))


def table(rows: list[Row]) -> list[str]:
    """Table of the rows, each compared with the first."""
    headers = [
        "",
        "s a step",
        "sentences/s",
        "against the first",
        "matmul, TFLOP/s",
        "of matmul rate",
        "peak memory, GB",
        "after the last step, GB",
    ]
    lines = [f"| {' | '.join(headers)} |", "|---|" + "---|" * (len(headers) - 1)]
    for row in rows:
        cells = [
            f"{row['step_seconds']:.2f}",
            f"{row['sentences_per_second']:.2f}",
            f"{rows[0]['step_seconds'] / row['step_seconds']:.2f}x",
            f"{row['matmul_teraflop_per_second']:.3f}",
            f"{row['utilisation']:.0%}",
            f"{row['peak_memory_gb']:.2f}",
            f"{row['memory_gb']:.2f}" if "memory_gb" in row else "",
        ]
        lines.append(f"| {name(row)} | {' | '.join(cells)} |")
    return lines


def phase_table(rows: list[Row]) -> list[str]:
    """Seconds of each phase; communication is left out, because there is only one rank."""
    phases = [phase for phase in PHASES if phase != "communication"]
    lines = [f"| s | {' | '.join(phases)} |", "|---|" + "---|" * len(phases)]
    for row in rows:
        cells = [f"{row['phases'][phase]:.3f}" for phase in phases]
        lines.append(f"| {name(row)} | {' | '.join(cells)} |")
    return lines


def growth_table(rows: list[Row]) -> list[str]:
    """Table of the resident memory after some of the steps."""
    after = (20, 50, 100, 200, 300, 400, 500)
    lines = ["| GB after step | " + " | ".join(map(str, after)) + " | 500 / 20 |", "|---|" + "---|" * (len(after) + 1)]
    for row in of_group(rows, "growth"):
        memory = [row["all_memory_gb"][step - 1] for step in after]
        cells = [f"ZeRO-{row['zero_stage']}, {'packed' if row['packed'] else 'padded'}"]
        cells += [f"{value:.2f}" for value in memory] + [f"{memory[-1] / memory[0]:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def scaling_table(rows: list[Row]) -> list[str]:
    """Table of the groups that are measured with bert-small."""
    lines = ["| bert-small | sentences | length | ranks | s a step | sentences/s | peak memory, GB a rank |"]
    lines.append("|---|---|---|---|---|---|---|")
    for group in ("batch", "length", "ranks"):
        for row in series_of(rows, group):
            lines.append(
                f"| {group} | {row['sentences']} | {row['length']} | {row['ranks']} | {row['step_seconds']:.2f} | "
                f"{row['sentences_per_second']:.1f} | {row['peak_memory_gb']:.2f} |"
            )
    return lines


def draw(rows: list[Row], file: Path) -> None:
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, series, along, label in (
        (left, (("batch", "1 rank"), ("ranks", "2 ranks")), "sentences", "sentences of 32 tokens"),
        (right, (("length", "16 sentences"),), "length", "tokens a sentence"),
    ):
        for group, legend in series:
            found = series_of(rows, group)
            if not found:
                continue
            x, y = [row[along] for row in found], [row["step_seconds"] for row in found]
            (line,) = axes.plot(x, y, marker="o", label=legend)
            if group != "ranks":  # the proportional line, through the largest
                axes.plot(x, [y[-1] * value / x[-1] for value in x], ":", color=line.get_color(), label="in proportion")
        axes.set(xscale="log", yscale="log", xlabel=label, ylabel="seconds a step")
        axes.grid(alpha=0.3, which="both")
        axes.legend()
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    main()
