"""How close is `diffcse-scale plan` to the memory of real training, on CPUs?

    python -m studies.plan_accuracy [--case NAME ...] [--results docs/results/plan.jsonl]

Every case is a real `deepspeed --num_gpus 2 train.py` with random weights, for three steps. We measure the largest
anonymous resident memory of a rank (RssAnon of /proc/self/status, read all the time by a thread), minus its value after
all imports. The measurement lasts from reading the recipe to the exported model. The rank with the largest value
counts.

Ranks run with MALLOC_MMAP_THRESHOLD_=1048576, so that glibc returns blocks of over a MiB when they are freed. With its
default settings it keeps blocks of up to 32 MiB. It cannot use them again for others of the same size, because their
alignment needs some more bytes. Then more memory stays resident than is ever in use. `--default-allocator` measures
that.

The cases and the tolerance were fixed before anything was measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TOLERANCE = 0.10
RANKS = 2
STEPS = 3

# name: family and shape of the encoder, fields of the recipe, DeepSpeed configuration
CASES: dict[str, dict[str, Any]] = {
    "bert, ZeRO-2, chunked": {
        "family": "bert",
        "shape": {"hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8, "intermediate_size": 2048},
        "recipe": {"batch": {"sentences": 256, "chunk": 32}},
        "zero": {"stage": 2},
    },
    "roberta, ZeRO-1, one pass": {
        "family": "roberta",
        "shape": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 1536},
        "recipe": {"batch": {"sentences": 128}},
        "zero": {"stage": 1},
    },
    "bert, ZeRO-3, activations computed again": {
        "family": "bert",
        "shape": {"hidden_size": 640, "num_hidden_layers": 4, "num_attention_heads": 10, "intermediate_size": 2560},
        "recipe": {"batch": {"sentences": 128}, "model": {"gradient_checkpointing": True}},
        "zero": {"stage": 3},
    },
}
# not a case: it measures what a rank needs besides tensors (planning.memory.PROCESS_BYTES)
TINY: dict[str, Any] = {
    "family": "bert",
    "shape": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
    "recipe": {"batch": {"sentences": 4}},
    "zero": {"stage": 2},
    "vocabulary": 400,
}
VOCABULARY = 30_522
LENGTH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=[*CASES, "tiny"], help="A case (default: all cases).")
    parser.add_argument("--results", type=Path, help="Append a line of JSON per case to this file.")
    parser.add_argument("--default-allocator", action="store_true", help="Measure with glibc's default settings.")
    parser.add_argument("--rank-in", type=Path, help=argparse.SUPPRESS)  # this process is a rank
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    arguments, rest = parser.parse_known_args()
    if arguments.rank_in:
        _train_and_watch(arguments.rank_in, rest)
        return
    for name in arguments.case or CASES:
        row = compare(name, TINY if name == "tiny" else CASES[name], arguments.default_allocator)
        print(json.dumps(row), flush=True)
        if arguments.results:
            with arguments.results.open("a") as file:
                file.write(json.dumps(row) + "\n")


def compare(name: str, case: dict[str, Any], default_allocator: bool = False) -> dict[str, Any]:
    """Plan and measure one case."""
    with tempfile.TemporaryDirectory() as folder:
        recipe, config = prepare(case, Path(folder))
        predicted = plan(recipe, config, Path(folder))
        peaks = measure(recipe, config, Path(folder), default_allocator)
    measured = max(peaks)
    error = predicted["peak"] / measured - 1
    return {
        "case": name,
        "allocator": "glibc's default" if default_allocator else "returns memory",
        "predicted_mb": round(predicted["peak"] / 1e6, 1),
        "measured_mb": round(measured / 1e6, 1),
        "ranks_mb": [round(peak / 1e6, 1) for peak in peaks],
        "error": round(error, 4),
        "within_tolerance": abs(error) <= TOLERANCE,
        "when": predicted["when"],
        "lines_mb": {line: round(size / 1e6, 1) for line, size in predicted["at_peak"].items()},
        "parameters": predicted["parameters"],
        "python": platform.python_version(),
        "libc": " ".join(platform.libc_ver()),
        **{package: metadata.version(package) for package in ("torch", "transformers", "deepspeed")},
    }


def prepare(case: dict[str, Any], folder: Path) -> tuple[Path, Path]:
    """Write random networks, text with sentences of the maximum length, recipe and configuration."""
    import yaml
    from transformers import AutoConfig, AutoModelForMaskedLM

    from diffcse_scale.embedded.grammar import training_sentences
    from tests.support.toy_world import toy_tokenizer

    sentences = training_sentences(6000, seed=3)
    text = [" ".join(sentences[i : i + 8]) for i in range(0, len(sentences), 8)]
    (folder / "corpus.txt").write_text("\n".join(text) + "\n")
    tokenizer = toy_tokenizer(sentences)
    vocabulary = case.get("vocabulary", VOCABULARY)
    small = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    for part, shape in (("encoder", case["shape"]), ("generator", small)):
        config = AutoConfig.for_model(case["family"], vocab_size=vocabulary, pad_token_id=0, **shape)
        AutoModelForMaskedLM.from_config(config).save_pretrained(folder / part)
        tokenizer.save_pretrained(folder / part)
    given = case["recipe"]
    recipe = {
        "name": "measured",
        "epochs": 100,
        "max_steps": STEPS,
        "log_every": 1,
        "model": {
            "encoder": str(folder / "encoder"),
            "generator": str(folder / "generator"),
            **given.get("model", {}),
        },
        "data": {
            "files": str(folder / "corpus.txt"),
            "max_length": LENGTH,
            "cache_dir": str(folder / "cache"),
            "workers": 1,
        },
        "batch": given["batch"],
        "optimizer": {"learning_rate": 1e-4},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "deepspeed.json").write_text(json.dumps({"zero_optimization": case["zero"]}))
    return folder / "recipe.yaml", folder / "deepspeed.json"


def plan(recipe: Path, config: Path, folder: Path) -> dict[str, Any]:
    """The memory that `diffcse-scale plan` plans for ranks on CPUs; it runs in a process of its own."""
    code = "from diffcse_scale.cli import main; main()"
    options = ["--nodes", "1", "--gpus-per-node", str(RANKS), "--gpu-memory", "8", "--cpu"]
    command = [sys.executable, "-c", code, "plan", "--recipe", recipe, "--deepspeed_config", config, *options]
    subprocess.run([*command, "--json", folder / "plan.json"], check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
    found: dict[str, Any] = json.loads((folder / "plan.json").read_text())["memory"]
    return found


def measure(recipe: Path, config: Path, folder: Path, default_allocator: bool = False) -> list[int]:
    """Peak memory of each rank of a real run, in bytes."""
    from diffcse_scale.rendezvous import free_port

    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", str(RANKS)]
    launcher += ["--master_port", str(free_port()), str(Path(__file__).resolve()), "--rank-in", str(folder)]
    options = ["--recipe", recipe, "--deepspeed_config", config, "--output", folder / "run"]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    if not default_allocator:
        environment["MALLOC_MMAP_THRESHOLD_"] = str(2**20)
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT, ROOT / "kernels", os.environ.get("PYTHONPATH", ""))))
    subprocess.run([*launcher, *map(str, options)], check=True, stdout=subprocess.DEVNULL, env=environment, cwd=ROOT)
    return [json.loads((folder / f"rank{rank}.json").read_text())["peak"] for rank in range(RANKS)]


def _train_and_watch(folder: Path, options: list[str]) -> None:
    """Run train.py as one rank, and record its memory."""
    import train
    from diffcse_scale.training.train_arguments import parse_arguments

    before, trace, done = _anonymous(), [], threading.Event()

    def watch() -> None:
        start = time.perf_counter()
        while not done.is_set():
            trace.append((time.perf_counter() - start, _anonymous() - before))
            time.sleep(0.002)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    sys.argv = ["train.py", *options]
    train.main(parse_arguments(train.__doc__))
    done.set()
    thread.join()
    found = {"peak": max(size for _, size in trace), "before": before, "trace": trace[:: max(1, len(trace) // 2000)]}
    (folder / f"rank{os.environ['LOCAL_RANK']}.json").write_text(json.dumps(found))


def _anonymous() -> int:
    """Anonymous resident memory of this process, in bytes."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))


if __name__ == "__main__":
    main()
