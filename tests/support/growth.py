"""Memory that a command takes for one more row of its input: the command at two sizes, watched from outside.

Memory is anonymous (RssAnon), of the largest process of a command. Pages of mapped files are not counted: the kernel
takes them back when it needs them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil
import yaml

from diffcse_scale.runs.metric_table import CHECKPOINTS, METRICS, TRAINING, WAITING
from diffcse_scale.text.corpus import CorpusReport
from tests.support.launch import ROOT, environment
from tests.support.toy_run import write_run
from tests.support.toy_world import save_toy_masked_lm, toy_tokenizer, write_toy_world

LETTERS = np.array(list("etaoinshrdlu"))
INTERVAL = 0.02  # seconds between two looks at a command


def sentences(rows: int, seed: int = 0) -> Iterator[str]:
    """Different sentences of 4 to 23 invented words out of 2,000, 80 characters on average."""
    draw = np.random.default_rng(seed)
    words = np.array(["".join(draw.choice(LETTERS, draw.integers(2, 8))) for _ in range(2000)])
    for row in range(rows):
        yield f"{row} {' '.join(words[draw.integers(0, len(words), draw.integers(4, 24))])}"


def metrics(rows: int) -> Iterator[dict[str, float | None]]:
    """Rows of metrics.jsonl as training writes them: a log line a step, an evaluation every 100 steps."""
    draw = np.random.default_rng(0)
    names = [*(name for name, metric in METRICS.items() if metric.pattern), TRAINING, WAITING, CHECKPOINTS]
    for step in range(rows):
        if step:
            yield {"step": step, **dict(zip(names, draw.random(len(names)).tolist(), strict=True))}
        if step % 100 == 0:
            yield {"step": step, "dev_spearman": 100 * float(draw.random()), "evaluation_seconds": 1.5}


def write_corpus(folder: Path, rows: int) -> None:
    """A toy world, whose corpus has so many rows, and whose networks know its words."""
    recipe = write_toy_world(folder)
    with (folder / "corpus.txt").open("w") as file:
        file.writelines(sentence + "\n" for sentence in sentences(rows))
    save_toy_masked_lm(folder / "model", toy_tokenizer(list(sentences(2000)), vocabulary=2000))
    recipe["data"] |= {"max_length": 32, "workers": 2}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"max_steps": 2}))


def write_pairs(folder: Path, rows: int) -> None:
    """Graded pairs for `evaluate`, and a model."""
    write_corpus(folder, 1)
    scores = np.random.default_rng(1).integers(0, 6, rows)
    with (folder / "graded.tsv").open("w") as file:
        for score, first, second in zip(scores, sentences(rows, seed=1), sentences(rows, seed=2), strict=True):
            file.write(f"{score}\t{first}\t{second}\n")


def write_metrics(folder: Path, rows: int) -> None:
    """A finished run whose metrics have so many rows."""
    (folder / "toy.yaml").write_text(yaml.safe_dump(write_toy_world(folder)))
    with (write_run(folder, folder / "run") / "metrics.jsonl").open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in metrics(rows))


def write_tokens(folder: Path, rows: int) -> None:
    """A tokenized corpus whose sentences have 4 to 23 tokens."""
    offsets = np.concatenate([[0], np.cumsum(np.random.default_rng(0).integers(4, 24, rows))])
    np.save(folder / "offsets_0.npy", offsets)
    np.save(folder / "ids_0.npy", np.ones(offsets[-1], np.int32))
    report = CorpusReport(read=rows, empty=0, undecodable=0, duplicate=0, unused=0, kept=rows)
    facts = {"fingerprint": "", "columns": 1, "streams": 1, "max_length": 32, "unknown": [0.0]}
    facts |= dict.fromkeys(("truncated", "without_tokens", "equal"), 0)
    (folder / "facts.json").write_text(json.dumps({**facts, "report": asdict(report)}))


@dataclass(frozen=True)
class Command:
    """A command line, in which {folder} is where its input lies.

    Attributes:
        inputs: makes the input of so many rows.
        before: commands that make more of the input, and are not measured.
    """

    inputs: Callable[[Path, int], None]
    line: tuple[str, ...]
    before: tuple[tuple[str, ...], ...] = ()

    def peak(self, rows: int) -> int:
        """Bytes of the largest process, on an input of so many rows."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            self.inputs(folder, rows)
            for line in self.before:
                _run(line, folder)
            return _run(self.line, folder)

    def growth(self, few: int, many: int) -> float:
        """Bytes a row, from the peaks at two sizes."""
        return (self.peak(many) - self.peak(few)) / (many - few)


def _run(line: tuple[str, ...], folder: Path) -> int:
    """Run a command to its end; its peak."""
    variables = {**environment(), "DIFFCSE_CACHE": str(folder / "cache"), "WORLD_SIZE": "1", "RANK": "0"}
    with (folder / "output.txt").open("w+") as output:
        command = [sys.executable, *(word.format(folder=folder) for word in line)]
        process = psutil.Popen(command, cwd=ROOT, env=variables, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
        peak = 0
        while process.poll() is None:
            with suppress(psutil.Error):
                peak = max(peak, *(_anonymous(pid) for pid in (process.pid, *_children(process))))
            with suppress(psutil.TimeoutExpired):
                process.wait(INTERVAL)
        output.seek(0)
        assert process.returncode == 0, output.read()[-3000:]
    return peak


def _children(process: psutil.Popen) -> list[int]:
    return [child.pid for child in process.children(recursive=True)]


def _anonymous(pid: int) -> int:
    with suppress(OSError), open(f"/proc/{pid}/status") as status:
        for line in status:
            if line.startswith("RssAnon"):
                return 1024 * int(line.split()[1])
    return 0


def _program(*lines: str) -> tuple[str, ...]:
    return ("-c", "\n".join(lines))


CLI = ("-m", "diffcse_scale")
PREPARE = (*CLI, "prepare", "--recipe", "{folder}/recipe.yaml")
TRAIN = ("train.py", "--recipe", "{folder}/recipe.yaml", "--output", "{folder}/run", "evaluation.data=null")
ENCODE = (*CLI, "encode", "--model", "{folder}/model", "--output", "{folder}/vectors", "--devices", "cpu")
ENCODE += ("--input", "{folder}/corpus.txt", "--max-length", "32", "--pooling", "mean")
GENERATOR = (*CLI, "pretrain-generator", "--files", "{folder}/corpus.txt", "--output", "{folder}/generator")
GENERATOR += ("--layers", "1", "--hidden", "32", "--heads", "2", "--vocab-size", "1000", "--steps", "2")
GENERATOR += ("--batch-size", "32", "--workers", "2")
COSINES = _program(
    "import numpy as np",
    "from diffcse_scale.evaluation import spearman",
    "from diffcse_scale.evaluation.tasks import read_pairs",
    "from pathlib import Path",
    "draw = np.random.default_rng(0)",
    "print(spearman(lambda s: draw.random((len(s), 768), np.float32), read_pairs(Path('{folder}/graded.tsv'))))",
)
EVALUATE = (*CLI, "evaluate", "--model", "{folder}/model", "--data", "{folder}/graded.tsv", "--max-length", "32")
COMMANDS = {
    "pretrain-generator": Command(write_corpus, GENERATOR),
    "prepare": Command(write_corpus, PREPARE),
    "prepare --edits 1": Command(write_corpus, (*PREPARE, "--edits", "1"), before=(PREPARE,)),
    "the order of a process that edits": Command(
        write_tokens,
        _program(
            "from pathlib import Path",
            "from diffcse_scale.generator.editing import _runs",
            "from diffcse_scale.text.tokens import TokenizedCorpus",
            "tokens = TokenizedCorpus(Path('{folder}'))",
            "assert sum(map(len, _runs(tokens, 0))) == len(tokens)",
        ),
    ),
    "train": Command(write_corpus, TRAIN, before=(PREPARE,)),
    "plan": Command(write_corpus, (*CLI, "plan", "--recipe", "{folder}/recipe.yaml", "--cpu"), before=(PREPARE,)),
    "encode": Command(write_corpus, ENCODE),
    "search": Command(write_corpus, (*CLI, "search", "{folder}/vectors", "tone"), before=(ENCODE,)),
    "evaluate": Command(write_pairs, EVALUATE),
    "Spearman of vectors of width 768": Command(write_pairs, COSINES),
    "report": Command(write_metrics, (*CLI, "report", "{folder}/run", "--no-models", "--output", "{folder}/page.html")),
    "a resume": Command(
        write_metrics,
        _program(
            "from pathlib import Path",
            "from diffcse_scale.runs.metrics_file import MetricsFile",
            "MetricsFile(Path('{folder}/run/metrics.jsonl')).keep(lambda row: row['step'] % 7 < 6)",
        ),
    ),
    "DiffCSE.fit": Command(
        write_corpus,
        _program(  # all but the training
            "from diffcse_scale import api",
            "from diffcse_scale.model_folder import load",
            "api._train = lambda arguments: None",
            "load.load_model = lambda output: (None, None)",
            "api.DiffCSE().fit((line.rstrip() for line in open('{folder}/corpus.txt')), '{folder}/run')",
        ),
    ),
}


if __name__ == "__main__":
    name, *sizes = sys.argv[1:]
    for size in map(int, sizes):
        print(name, size, f"{COMMANDS[name].peak(size) / 1e6:.1f} MB", flush=True)
