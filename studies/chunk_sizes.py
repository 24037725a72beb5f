"""Memory and time of a step by the number of sentences on a device, in chunks and as a whole.

    export DIFFCSE_DATA=... DIFFCSE_MODELS=...
    python studies/chunk_sizes.py measure     # adds a row to docs/results/chunking.jsonl after each run
    python studies/chunk_sizes.py report      # table and picture from the rows

Backbone and generator are `$DIFFCSE_MODELS/wiki-mini`, the corpus is `$DIFFCSE_DATA/corpus`. Every run is
`deepspeed train.py` under ZeRO-2 on CPU ranks, float32. Memory is a rank's largest resident memory that belongs to no
file (RssAnon of /proc), so without code and the mapped corpus. Another process samples it every 20 ms.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from diffcse_scale.foundation.environment import environment

ROOT = Path(__file__).parents[1]
ROWS = ROOT / "docs" / "results" / "chunking.jsonl"
MB = 1e6
# (name, ranks, sentences on all ranks, chunk or None, steps)
RUNS = [
    *((f"chunk 32, {share} sentences", 1, share, 32, steps) for share, steps in ((256, 3), (1024, 1), (4096, 1))),
    *((f"whole, {share} sentences", 1, share, None, 3) for share in (64, 128, 256)),
    ("chunk 64, 16384 sentences on 2 ranks", 2, 16384, 64, 1),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["measure", "report"])
    parser.add_argument("--rows", type=Path, default=ROWS)
    arguments = parser.parse_args()
    if arguments.what == "report":
        report(arguments.rows)
        return
    there = {row["name"] for row in read(arguments.rows)}
    for name, ranks, sentences, chunk, steps in RUNS:
        if name not in there:
            row = {"name": name, **measure(ranks, sentences, chunk, steps), "environment": environment()}
            print(json.dumps(row), flush=True)
            with arguments.rows.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def measure(ranks: int, sentences: int, chunk: int | None, steps: int) -> dict[str, Any]:
    """Run a few steps; the first is a warm-up: it counts for memory, but not for time if there are others."""
    with tempfile.TemporaryDirectory() as folder:
        command = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", str(ranks), str(ROOT / "train.py")]
        command += ["--deepspeed_config", str(ROOT / "ds_configs" / "zero2.json"), "--recipe", "bert_base_sts"]
        command += ["--output", f"{folder}/run", *changes(sentences, chunk, steps)]
        process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": str(2 // ranks)})
        peaks: dict[int, int] = {}
        stop = threading.Event()
        watch = threading.Thread(target=sample, args=(process.pid, peaks, stop))
        watch.start()
        code = process.wait()
        stop.set()
        watch.join()
        if code:
            raise SystemExit(f"{' '.join(command)} ended with {code}")
        lines = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
    rates = [line["sentences_per_second"] for line in lines if "sentences_per_second" in line]
    largest = sorted(peaks.values())[-ranks:]
    return {
        "ranks": ranks,
        "sentences_per_device": sentences // ranks,
        "chunk": chunk,
        "peak_anonymous_mb": [round(peak / MB, 1) for peak in largest],
        "peak_resident_mb": max(line.get("peak_memory_gb", 0) for line in lines) * 1e3,
        "ms_per_sentence": 1e3 * ranks / (sum(rates[1:] or rates) / len(rates[1:] or rates)),
    }


def changes(sentences: int, chunk: int | None, steps: int) -> list[str]:
    backbone = f"{os.environ['DIFFCSE_MODELS']}/wiki-mini"
    return [
        *(f"model.encoder={backbone}", f"model.generator={backbone}", "evaluation.data=null", "log_every=1"),
        *(f"data.files={os.environ['DIFFCSE_DATA']}/corpus/*.txt.gz", "data.limit=20032", "objective.fidelity=sampled"),
        *(f"max_steps={steps}", "epochs=100", f"batch.sentences={sentences}"),
        f"batch.chunk={'null' if chunk is None else chunk}",
    ]


def sample(launcher: int, peaks: dict[int, int], stop: threading.Event) -> None:
    """Largest RssAnon, in bytes, of every process that the launcher started."""
    while not stop.wait(0.02):
        for process in descendants(launcher):
            try:
                status = Path(f"/proc/{process}/status").read_text()
            except OSError:
                continue  # the process has ended
            for line in status.splitlines():
                if line.startswith("RssAnon:"):
                    peaks[process] = max(peaks.get(process, 0), 1024 * int(line.split()[1]))


def descendants(process: int) -> list[int]:
    """All descendants of a process, without the process itself."""
    found, waiting = [], [process]
    while waiting:
        parent = waiting.pop()
        for task in Path("/proc", str(parent), "task").glob("*"):
            try:
                children = [int(child) for child in (task / "children").read_text().split()]
            except OSError:
                continue
            found += children
            waiting += children
    return found


def read(rows: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in rows.read_text().splitlines()] if rows.is_file() else []


def report(rows: Path) -> None:
    """Print a Markdown table, and write a picture beside the rows."""
    found = read(rows)
    print("| run | peak, MB a rank | ms a sentence |\n|---|---|---|")
    for row in found:
        print(f"| {row['name']} | {max(row['peak_anonymous_mb']):,.0f} | {row['ms_per_sentence']:.1f} |")
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for label, chunked in (("whole share in one graph", False), ("chunks of 32", True)):
        line = [row for row in found if row["ranks"] == 1 and (row["chunk"] is not None) == chunked]
        line.sort(key=lambda row: row["sentences_per_device"])
        axes.plot(
            [row["sentences_per_device"] for row in line],
            [max(row["peak_anonymous_mb"]) / 1e3 for row in line],
            marker="o",
            label=label,
        )
    axes.set(xlabel="sentences on a device", ylabel="peak memory, GB", xscale="log", ylim=(0, None))
    axes.set_xticks([64, 128, 256, 1024, 4096], labels=["64", "128", "256", "1,024", "4,096"])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(rows.with_suffix(".png"), dpi=150)


if __name__ == "__main__":
    main()
