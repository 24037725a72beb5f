"""How fast is `diffcse-scale encode` beside `SentenceTransformer.encode`? Is its memory flat? Does it survive kills?

    python -m studies.encoding measure --model MODEL [--pooling mean] [--sentences 200000]
    python -m studies.encoding report     # writes docs/results/encoding.md

It needs $DIFFCSE_DATA. One run of `encode` is paused (SIGSTOP) after every few shards. During the pause
SentenceTransformer.encode encodes some of the same sentences in this process, and then `encode` continues. So other
work on the machine affects both alike. Then a second run is killed with all its processes at random moments and
repeated, and its files are compared.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from sentence_transformers import SentenceTransformer

from diffcse_scale.encoding import load
from diffcse_scale.encoding.window_encoder import WindowEncoder
from diffcse_scale.foundation.environment import environment
from diffcse_scale.model_folder.load import load_model

ROOT = Path(__file__).resolve().parent.parent
ROWS = ROOT / "docs" / "results" / "encoding.jsonl"
BATCH_SIZES = (8, 16, 32, 64, 128)
SWEEP = 256  # sentences for comparing the batch sizes of SentenceTransformer.encode
ORIGIN = {"wiki-mini": " (made from a supervised sentence encoder)"}
SHARDS = 2  # that `encode` finishes between two pauses
Row = dict[str, Any]


def read_lines(file: Path) -> Iterator[str]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield line.rstrip("\n")


class Run:
    """`diffcse-scale encode` in processes of their own, which can be paused and killed together."""

    def __init__(self, arguments: list[str], output: Path) -> None:
        self.output, self.seconds = output, 0.0
        self.memory: list[tuple[float, int, int]] = []
        self.processor: dict[int, float] = {}
        command = [sys.executable, "-m", "diffcse_scale", "encode", *arguments, "--output", str(output)]
        path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
        environ = {**os.environ, "PYTHONPATH": path}
        self.process = subprocess.Popen(command, env=environ, start_new_session=True, stderr=subprocess.DEVNULL)

    @property
    def shards(self) -> int:
        """Number of shards finished so far."""
        journal = self.output / "_shards.jsonl"
        return journal.read_text().count("\n") if journal.is_file() else 0

    def wait(self, shards: float, delay: float = 0.0) -> bool:
        """Wait until `shards` shards are finished, and `delay` seconds more; returns False if the run has ended."""
        began = time.perf_counter()
        while self.process.poll() is None and self.shards < shards:
            self._sample(self.seconds + time.perf_counter() - began)
            time.sleep(0.25)
        time.sleep(delay if self.process.poll() is None else 0)
        self.seconds += time.perf_counter() - began
        return self.process.poll() is None

    def signal(self, number: int) -> None:
        """Send a signal to all processes of the run."""
        os.killpg(self.process.pid, number)

    def processor_seconds(self) -> float:
        """Processor time of all processes so far, including those that have ended."""
        with suppress(psutil.NoSuchProcess):  # the run has just ended
            self.processor.update({process.pid: sum(process.cpu_times()[:2]) for process in self._processes()})
        return sum(self.processor.values())

    def _processes(self) -> list[psutil.Process]:
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def _sample(self, seconds: float) -> None:
        """Record the processes' memory that belongs to no file, in bytes, and their processor time before they end."""
        self.processor_seconds()
        total = 0
        with suppress(psutil.NoSuchProcess):  # the run has just ended
            for process in self._processes():
                info = process.memory_info()
                total += info.rss - info.shared
            self.memory.append((round(seconds, 1), self.shards, total))


def padding(model: SentenceTransformer, sentences: list[str]) -> list[Row]:
    """Padding tokens as a share of the real tokens."""
    text = {"truncation": True, "max_length": model.max_seq_length}
    lengths = np.array([len(ids) for ids in model.tokenizer(sentences, **text)["input_ids"]])
    characters = np.array([len(sentence) for sentence in sentences])

    def surplus(batches: Iterable[np.ndarray]) -> float:
        return float(sum(batch.max() * len(batch) for batch in batches) / lengths.sum() - 1)

    by_characters = lengths[np.argsort(-characters)]
    rows = [
        (f"sorted by characters, batches of {size}", surplus(np.split(by_characters, range(size, len(lengths), size))))
        for size in BATCH_SIZES
    ]
    encoder = WindowEncoder(model, torch.device("cpu"))
    windows = (lengths[start : start + 8192] for start in range(0, len(lengths), 8192))
    ours = (window[chosen] for window in windows for chosen in encoder.cut(window))
    rows.append(("sorted by tokens in windows of 8,192, batches of 1,024 tokens", surplus(ours)))
    return [{"case": "padding", "how": how, "surplus": value} for how, value in rows]


def sweep(model: SentenceTransformer, sentences: list[str]) -> list[Row]:
    """Rate of SentenceTransformer.encode at several batch sizes, each the better of two."""
    times: dict[int, list[float]] = {size: [] for size in BATCH_SIZES}
    for size in BATCH_SIZES * 2:
        times[size].append(timed(model, sentences, size)[0])
    return [{"case": "batch size", "batch_size": size, "rate": len(sentences) / min(times[size])} for size in times]


def timed(model: SentenceTransformer, sentences: list[str], size: int = 32) -> tuple[float, np.ndarray]:
    began = time.perf_counter()
    embeddings = model.encode(sentences, batch_size=size, show_progress_bar=False)
    return time.perf_counter() - began, embeddings


def one_thread(model: SentenceTransformer, sentences: list[str]) -> float:
    """Processor time of SentenceTransformer.encode with one thread; several threads would busy-wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    began = time.process_time()
    model.encode(sentences, batch_size=32, show_progress_bar=False)
    torch.set_num_threads(threads)
    return time.process_time() - began


def alternate(run: Run, model: SentenceTransformer, sentences: list[str], reference_rows: int) -> list[Row]:
    """One row for each pause: seconds and sentences of both programs since the last pause."""
    rows: list[Row] = []
    references: dict[int, np.ndarray] = {}
    shards, before, processor_before = 0, 0.0, 0.0
    # wait for the first shards separately: they include loading the model and reading the text
    running = run.wait(SHARDS)
    start_up = run.seconds
    while running:
        now, processor = run.shards, run.processor_seconds()
        run.signal(signal.SIGSTOP)
        start = min(len(rows) * SHARDS * window_of(run), len(sentences) - reference_rows)
        seconds, references[start] = timed(model, sentences[start : start + reference_rows])
        rows.append(
            {
                "case": "block",
                "encode_sentences": (now - shards) * window_of(run),
                "encode_seconds": run.seconds - before,
                "encode_processor_seconds": processor - processor_before,
                "reference_sentences": reference_rows,
                "reference_seconds": seconds,
                "reference_processor_seconds": one_thread(model, sentences[start : start + reference_rows : 4]) * 4,
            }
        )
        print(json.dumps(rows[-1]), flush=True)
        shards, before, processor_before = now, run.seconds, processor
        run.signal(signal.SIGCONT)
        running = run.wait(now + SHARDS)
    assert run.process.returncode == 0
    ours = np.asarray(load(run.output))
    difference = max(np.abs(ours[start : start + len(found)] - found).max() for start, found in references.items())
    whole = {"sentences": len(sentences), "seconds": run.seconds, "first_shards_seconds": start_up}
    return [*rows, {"case": "whole", **whole, "largest_difference": float(difference)}]


def window_of(run: Run) -> int:
    return int(json.loads((run.output / "_manifest.json").read_text())["window"])


def killed(arguments: list[str], output: Path, kills: int, whole: Run) -> Row:
    """Do the same work, kill all processes at random moments, repeat the command, and compare the files."""
    draw = random.Random(0)
    shards = whole.shards
    moments = sorted(draw.uniform(0, shards - 1) for _ in range(kills))
    a_shard = whole.seconds / shards
    done = []
    for moment in moments:
        run = Run(arguments, output)
        assert run.wait(int(moment), delay=(moment % 1) * a_shard)
        run.signal(signal.SIGKILL)
        run.process.wait()
        done.append(run.shards)
        print(f"killed with {run.shards} of {shards} shards", flush=True)
    assert not Run(arguments, output).wait(float("inf"))
    names = sorted(path.name for path in whole.output.iterdir())
    same = names == sorted(path.name for path in output.iterdir()) and all(
        (output / name).read_bytes() == (whole.output / name).read_bytes() for name in names
    )
    return {"case": "killed", "kills": kills, "shards_at_kills": done, "shards": shards, "identical": same}


def page(rows: list[Row]) -> str:
    """The text of docs/results/encoding.md."""
    blocks = [row for row in rows if row["case"] == "block"][1:]  # the first block contains the start
    ours = [row["encode_sentences"] / row["encode_seconds"] for row in blocks]
    theirs = [row["reference_sentences"] / row["reference_seconds"] for row in blocks]
    ratios = [own / their for own, their in zip(ours, theirs, strict=True)]
    case = {row["case"]: row for row in rows}
    whole, memory, about, kills = case["whole"], case["memory"], case["whole"]["environment"], case.get("killed")
    sizes = [(row["batch_size"], row["rate"]) for row in rows if row["case"] == "batch size"]
    packages = about["packages"]
    return PAGE.format(
        sentences=whole["sentences"],
        model=f"`{whole['model']}`{ORIGIN.get(whole['model'], '')}",
        precision=whole["precision"],
        blocks=len(blocks),
        block=blocks[0]["reference_sentences"],
        ours=statistics.median(ours),
        theirs=statistics.median(theirs),
        ratio=statistics.median(ratios),
        least=min(ratios),
        most=max(ratios),
        processor=processor_ratio(blocks),
        seconds=whole["seconds"],
        difference=whole["largest_difference"],
        sizes=" | ".join(str(size) for size, _ in sizes),
        rule="|---" * (len(sizes) + 1),
        rates=" | ".join(f"{rate:.0f}" for _, rate in sizes),
        padding=";\n".join(f"{row['how']} {row['surplus']:.1%}" for row in rows if row["case"] == "padding"),
        first=memory["first_half"] / 1e6,
        second=memory["second_half"] / 1e6,
        killed=_killed_sentence(kills) if kills else "Kills were not tried in this run.",
        processors=f"{about['cores']} cores of an {about['processor']}",
        load=", ".join(f"{load:.1f}" for load in whole["load"]),
        python=about["python"],
        versions=", ".join(f"{name} {packages[name]}" for name in ("torch", "transformers", "sentence-transformers")),
    )


def _killed_sentence(row: Row) -> str:
    same = "every file was the same, byte for byte" if row["identical"] else "**the files differed**"
    after = ", ".join(map(str, row["shards_at_kills"]))
    return (
        f"A second run was killed {row['kills']} times (SIGKILL to all of its processes, with {after} of "
        f"{row['shards']} shards finished) and repeated: {same}."
    )


PAGE = """\
# Encoding: rate, memory, kills

**Question.** How fast is `diffcse-scale encode` compared with `SentenceTransformer.encode`? Does its memory grow, and
do kills change its output?

<!-- only parsed: trains or measures for a long time -->

    export DIFFCSE_DATA=...
    python -m studies.encoding measure --model MODEL
    python -m studies.encoding report

The input is the first {sentences:,} sentences of `$DIFFCSE_DATA/corpus`.
The model is {model} in {precision}.
One run of `encode` was paused after every second shard. During each pause `SentenceTransformer.encode` (batches of 32,
its default, and as many threads as cores) encoded {block:,} of the same sentences in another process. So other work on
the machine affected both. `encoding.jsonl` has the rows.

| | sentences/s |
|---|---|
| `encode`, a process a core | {ours:.0f} |
| `SentenceTransformer.encode` | {theirs:.0f} |

These are medians of {blocks} blocks. The median ratio of a block is **{ratio:.2f}**, from {least:.2f} to {most:.2f}.
`encode` took {seconds:,.0f} s of its own time for all sentences, the start included. Load averages of the machine at
the end: {load}. A loaded machine slows threads that wait for one another more than independent
processes. The load affects processor time per sentence least: `SentenceTransformer.encode` with *one* thread needs
**{processor:.2f} times** that of `encode`, including reading, tokenizing and writing.

This is the rate of `SentenceTransformer.encode` by batch size, in sentences/s (few sentences, the better of two, so
only an indication):

| batch | {sizes} |
{rule}|
| | {rates} |

Embeddings differ by at most {difference:.0e} in any component, because padding and therefore rounding differ.

The gain comes from less padding, and from one independent process per core. This is the padding as a share of the real
tokens:
{padding}.

The memory of all processes together that belongs to no file was at most {first:,.0f} MB in the first half of the run
and {second:,.0f} MB in the second.

{killed}

We did not measure GPUs here.

Machine: {processors}, no GPU, shared with other work; Python {python}, {versions}.
"""


def processor_ratio(blocks: list[Row]) -> float:
    return statistics.median(
        row["reference_processor_seconds"]
        / row["reference_sentences"]
        / (row["encode_processor_seconds"] / row["encode_sentences"])
        for row in blocks
    )


def memory(run: Run) -> Row:
    """Peak of each half of the run, and some hundred of the samples."""
    # from the first shard on, because the model is loaded before it
    working = [sample for sample in run.memory if sample[1] >= 1]
    halves = np.array_split(np.array([sample[2] for sample in working]), 2)
    thinned = working[:: max(1, len(working) // 100)]
    return {
        "case": "memory",
        "first_half": int(halves[0].max()),
        "second_half": int(halves[1].max()),
        "samples": thinned,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["measure", "report"])
    parser.add_argument("--model", help="The model to measure: a run or a model folder.")
    parser.add_argument("--pooling", default=None)
    parser.add_argument("--sentences", type=int, default=200_000)
    parser.add_argument("--reference-rows", type=int, default=2048, help="Rows for SentenceTransformer.encode.")
    parser.add_argument("--window", type=int, default=8192)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--kills", type=int, default=5, help="How often the second run is killed; 0 leaves it out.")
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--work", type=Path, default=None, help="Parent of the temporary folder of embeddings.")
    options = parser.parse_args()
    if options.what == "measure":
        measure(options)
        return
    rows = [json.loads(line) for line in options.rows.read_text(encoding="utf-8").splitlines()]
    options.rows.with_suffix(".md").write_text(page(rows), encoding="utf-8")


def measure(options: argparse.Namespace) -> None:
    """Do both runs, and write the rows after each."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    files = sorted(Path(os.environ["DIFFCSE_DATA"], "corpus").glob("*.txt.gz"))
    sentences = list(itertools.islice(itertools.chain.from_iterable(map(read_lines, files)), options.sentences))
    model, _ = load_model(options.model, options.pooling)
    with tempfile.TemporaryDirectory(dir=options.work) as temporary:
        text = Path(temporary, "sentences.txt")
        text.write_text("".join(f"{sentence}\n" for sentence in sentences), encoding="utf-8")
        arguments = ["--model", options.model, "--input", str(text), "--window", str(options.window)]
        arguments += ["--precision", options.precision, *(["--pooling", options.pooling] if options.pooling else [])]
        rows = [*padding(model, sentences), *sweep(model, sentences[:SWEEP])]
        run = Run(arguments, Path(temporary, "whole"))
        rows += alternate(run, model, sentences, options.reference_rows)
        rows.append(memory(run))
        write(rows, options)
        if options.kills:
            rows.append(killed(arguments, Path(temporary, "killed"), options.kills, run))
            write(rows, options)


def write(rows: list[Row], options: argparse.Namespace) -> None:
    about = {"model": Path(options.model).name, "precision": options.precision, "load": os.getloadavg()}
    about["environment"] = environment()
    options.rows.write_text("".join(json.dumps({**row, **about}) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
