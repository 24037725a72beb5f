"""Cosines of trained models: how narrow is their band, and does projection, mean removal or whitening rank better?

    export DIFFCSE_DATA=...                       # for runs on real text
    python -m studies.cosines measure --run quickstart=runs/one --run batchnorm=runs/two   # adds rows to cosines.jsonl
    python -m studies.cosines report              # the tables of docs/results/cosines.md on standard output

Each run is measured as it is (h) and after the projection of its training (z). Both are also measured with the mean of
a sample removed, and whitened. Whitening removes the mean and makes the covariance the identity, over all but one of
the principal components or over the first half of them (Su et al. 2021, arXiv 2103.15316). The sample has `--sample`
sentences of the kind that the run was trained on, but which it has not seen. Nothing is chosen on the measured pairs.

We decided this before the measurement: `encode` offers a variant if it ranks graded pairs better than h for every run
here, each time with a 95% interval of the difference (paired bootstrap) above 0. Nothing else is offered.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffcse_scale.embedded.grammar import graded_pairs, training_sentences
from diffcse_scale.evaluation.geometry import evaluate_geometry, on_sphere
from diffcse_scale.evaluation.scores import differences
from diffcse_scale.evaluation.sentence_encoder import Once, encode_with
from diffcse_scale.evaluation.sts import MEAN, evaluate_sts
from diffcse_scale.evaluation.tasks import TaskPairs, load_sts
from diffcse_scale.export.whitening import whitening
from diffcse_scale.foundation.environment import environment
from diffcse_scale.model_folder.appended_projection import Dense, open_projection
from diffcse_scale.model_folder.load import load_model
from diffcse_scale.recipe import EMBEDDED
from diffcse_scale.recipe_file import load_recorded

ROOT = Path(__file__).parents[1]
SAMPLE, PAIRS = 5000, 3000
SHARD = "wiki_en-00003-of-00004.txt.gz"  # a part of the corpus on which no run is trained
PERCENTILES = (1, 50, 99)
Map = Callable[[np.ndarray], np.ndarray]
Row = dict[str, Any]


def variants(sample: np.ndarray) -> dict[str, Map]:
    """The maps of embeddings [n, H] to be measured, by name."""
    width = sample.shape[1]
    return {
        "": lambda rows: rows,
        "mean removed": lambda rows: rows - sample.mean(0),
        "whitened": mapped(whitening(sample, width - 1)),  # after a LayerNorm one direction may have no variance
        "whitened, half": mapped(whitening(sample, width // 2)),
    }


def mapped(layer: Dense) -> Map:
    return lambda rows: rows @ layer.weight.double().numpy().T + layer.bias.double().numpy()


def projected(run: Path, kind: str) -> Map:
    network = open_projection(run, kind)

    def project(rows: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return network(torch.from_numpy(rows).float()).double().numpy()

    return project


def measure(name: str, run: Path, rows: Path, size: int, names: list[str] | None) -> None:
    """Add a row for each variant of a run.

    Args:
        size: number of sentences in the sample.
        names: names of the STS tasks; None for all.
    """
    recipe = load_recorded(run / "recipe.yaml")
    model, _ = load_model(run, device="cpu")
    if recipe.data.files == [EMBEDDED]:
        sample = training_sentences(size, seed=1_000_000)
        tasks = [TaskPairs("embedded pairs", "own", graded_pairs(PAIRS, seed=1))]
    else:
        data = Path(os.environ["DIFFCSE_DATA"])
        with gzip.open(data / "corpus" / SHARD, "rt", encoding="utf-8") as lines:
            sample = [line.rstrip("\n") for line in itertools.islice(lines, size)]
        tasks = load_sts(data / "sts", names)
    model.max_seq_length = 64
    once = Once(encode_with(model, batch_size=128, show_progress_bar=False))
    spaces: dict[str, Map] = {"h": lambda embeddings: embeddings}
    if recipe.model.projection != "none":
        spaces["z"] = projected(run, recipe.model.projection)
    baseline = None
    for space, project in spaces.items():
        for variant, change in variants(project(once(sample).astype(np.float64))).items():

            def encode(sentences: list[str], project: Map = project, change: Map = change) -> np.ndarray:
                return change(project(once(sentences).astype(np.float64)))

            results = evaluate_sts(encode, tasks)
            baseline = baseline or results
            geometry = {score.name: score.value for score in evaluate_geometry(encode, tasks[0]).scores}
            row = {
                "run": name,
                "sample": size,
                "variant": " ".join(filter(None, (space, variant))),
                "scores": {score.name: score.value for score in (*results.scores, *results.means)},
                "against h": {d.name: [d.value, d.interval] for d in differences(results, baseline)},
                "geometry": geometry,
                "cosines": percentiles(encode, tasks[0]),
                "environment": environment(),
            }
            print(name, row["variant"], row["scores"], row["cosines"], flush=True)
            with rows.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def percentiles(encode: Callable[[list[str]], np.ndarray], task: TaskPairs) -> list[float]:
    """Percentiles of the cosines of all pairs of different sentences, among the first sentences of the task's pairs."""
    points = on_sphere(encode(list(dict.fromkeys(pair[1] for pair in task.pairs))))
    cosines = (points @ points.T)[np.triu_indices(len(points), 1)]
    return [float(value) for value in np.percentile(cosines, PERCENTILES)]


def report(rows: Path) -> None:
    found = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    for name in dict.fromkeys(row["run"] for row in found):
        print(f"\n## {name}\n")
        print("| | Spearman x 100 | against h | cosines of 98% of all pairs | alignment | uniformity |")
        print("|---|---|---|---|---|---|")
        for row in found:
            if row["run"] != name:
                continue
            what = next(name for name in (MEAN, "STS-B test", "embedded pairs") if name in row["scores"])
            difference, (low, high) = row["against h"][what]
            geometry = row["geometry"]
            cells = [
                f"{row['scores'][what]:.2f}",
                "" if row["variant"] == "h" else f"{difference:+.2f} [{low:+.2f}, {high:+.2f}]",
                f"{row['cosines'][0]:.3f} to {row['cosines'][2]:.3f}",
                f"{geometry['alignment']:.4f}",
                f"{geometry['uniformity']:.3f}",
            ]
            print(f"| {row['variant']} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("measure", "report"))
    parser.add_argument("--run", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--sample", type=int, default=SAMPLE)
    parser.add_argument("--task", action="append", help="An STS task. May be given several times (default: all).")
    parser.add_argument("--rows", type=Path, default=ROOT / "docs" / "results" / "cosines.jsonl")
    arguments = parser.parse_args()
    if arguments.what == "report":
        report(arguments.rows)
        return
    for named in arguments.run:
        name, _, folder = named.partition("=")
        measure(name, Path(folder), arguments.rows, arguments.sample, arguments.task)


if __name__ == "__main__":
    main()
