"""Processor time that one rank needs to make its share of a batch, by the number of ranks.

    python -m studies.batch_making --name now      # adds a row for each number of ranks to docs/results/batches.jsonl
    python -m studies.batch_making --table         # the table of the existing rows

The corpus is random: four million sentences of 5 to 32 tokens, in the files that `tokenize` writes. Each rank has 64
sentences of a batch. The time is this process's processor time, a median over steps that are spread over an epoch. So
other work on the machine has an effect only through the caches.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from diffcse_scale.foundation.environment import environment
from diffcse_scale.foundation.strict_json import to_json
from diffcse_scale.model.backbone import load_tokenizer
from diffcse_scale.recipe_file import load_recipe
from diffcse_scale.text.batches import Batches
from diffcse_scale.text.tokenizers import Tokenizers
from diffcse_scale.text.tokens import TokenizedCorpus

ROWS = Path(__file__).parents[1] / "docs" / "results" / "batches.jsonl"
SENTENCES, EACH, STEPS = 4_000_000, 64, 41
RANKS = (8, 64, 1024, 4096)


def corpus(folder: Path) -> TokenizedCorpus:
    """Random tokens, written to files so that they are memory-mapped like a real corpus."""
    draw = np.random.default_rng(0)
    lengths = draw.integers(5, 33, SENTENCES)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    np.save(folder / "offsets_0.npy", offsets)
    np.save(folder / "longest_0.npy", lengths.astype(np.uint8))
    np.save(folder / "ids_0.npy", draw.integers(5, 500, offsets[-1]).astype(np.int32))
    counts = dict.fromkeys(("truncated", "without_tokens", "equal"), 0)
    report = dict.fromkeys(("read", "empty", "undecodable", "duplicate", "unused", "kept"), 0)
    facts = {**counts, "streams": 1, "columns": 1, "fingerprint": "", "max_length": 32, "unknown": [0.0]}
    (folder / "facts.json").write_text(to_json({**facts, "report": report}), encoding="utf-8")
    return TokenizedCorpus(folder)


def milliseconds(work: Callable[[int], object], steps: int) -> float:
    """Median processor time of a call over steps of an epoch, without the first two."""
    taken = []
    for turn in range(STEPS + 2):
        begun = time.process_time()
        work(turn % steps)
        taken.append((time.process_time() - begun) * 1e3)
    return statistics.median(taken[2:])


def measure(tokens: TokenizedCorpus, ranks: int) -> dict[str, Any]:
    """Time of the last rank's share, and the part of it for the order of the whole batch."""
    recipe = load_recipe("quickstart", [f"batch.sentences={EACH * ranks}"])
    batches = Batches(tokens, Tokenizers.shared(load_tokenizer("embedded")), recipe, ranks - 1, ranks)
    whole, order = (milliseconds(work, len(batches)) for work in (batches.batch, batches.sentence_ids))
    return {"ranks": ranks, "sentences": EACH * ranks, "batch_ms": whole, "order_ms": order}


def table(rows: list[dict[str, Any]]) -> str:
    """Milliseconds of a batch, and of its order, by the names of the rows."""
    names = list(dict.fromkeys(row["name"] for row in rows))
    lines = ["| ranks | sentences | " + " | ".join(f"{name}, ms | its order" for name in names) + " |"]
    lines.append("|---" * (2 + 2 * len(names)) + "|")
    for ranks in sorted({row["ranks"] for row in rows}):
        found = {row["name"]: row for row in rows if row["ranks"] == ranks}
        cells = [f"{found[name]['batch_ms']:.2f} | {found[name]['order_ms']:.2f}" for name in names if name in found]
        lines.append(f"| {ranks:,} | {EACH * ranks:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--name", default="now", help="Name of what is measured, a column of the table.")
    parser.add_argument(
        "--table", action="store_true", help="Print the table of the existing rows and measure nothing."
    )
    arguments = parser.parse_args()
    if not arguments.table:
        with tempfile.TemporaryDirectory() as folder, arguments.rows.open("a", encoding="utf-8") as file:
            tokens = corpus(Path(folder))
            for ranks in RANKS:
                row = {"name": arguments.name, **measure(tokens, ranks), "load_average": round(os.getloadavg()[0], 1)}
                file.write(json.dumps({**row, "environment": environment()}) + "\n")
    print(table([json.loads(line) for line in arguments.rows.read_text(encoding="utf-8").splitlines()]))


if __name__ == "__main__":
    main()
