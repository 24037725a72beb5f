"""Semantic textual similarity: Spearman's rank correlation (x 100) of cosine similarity and human score."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from diffcse_scale.evaluation.tasks import STS_TASKS, GradedPair, Split, TaskPairs

Encode = Callable[[list[str]], np.ndarray]
"""Sentences to embeddings [n, hidden], floating point, in the order given."""

# Cosines of float32 vectors carry errors of about 1e-7: a spread below this ranks rounding noise.
RESOLUTION = 1e-6


@dataclass(frozen=True)
class TaskScore:
    """The result of one task: `spearman` x 100, NaN where it is undefined, and what to know about it."""

    name: str
    split: Split
    pairs: int
    spearman: float
    remark: str = ""


@dataclass(frozen=True)
class STSResults:
    """Scores of the tasks that were there. Dev and test sets are never averaged together."""

    scores: tuple[TaskScore, ...]

    def __getitem__(self, name: str) -> TaskScore:
        """The score of the task `name`; KeyError if it was not measured."""
        for score in self.scores:
            if score.name == name:
                return score
        raise KeyError(name)

    @property
    def missing(self) -> tuple[str, ...]:
        """Standard tasks that were not measured."""
        measured = {score.name for score in self.scores}
        return tuple(task.name for task in STS_TASKS if task.name not in measured)

    @property
    def mean_of_seven(self) -> float | None:
        """Mean over STS12-16, STS-B test and SICK-R test; None unless all seven were measured."""
        names = [task.name for task in STS_TASKS if task.split == "test"]
        if any(name in self.missing for name in names):
            return None
        return float(np.mean([self[name].spearman for name in names]))


def evaluate_sts(encode: Encode, tasks: Sequence[TaskPairs]) -> STSResults:
    """Measure an encoder on tasks. Each distinct sentence is encoded once over all tasks."""
    row = _rows(pair for task in tasks for pair in task.pairs)
    embeddings = _encode(encode, list(row))
    scores = []
    for task in tasks:
        value, remark = _score(embeddings, row, task.pairs)
        if task.standard_pairs not in (None, len(task.pairs)):
            count = f"{len(task.pairs):,} pairs, the standard set has {task.standard_pairs:,}: not comparable"
            remark = f"{count}; {remark}" if remark else count
        scores.append(TaskScore(task.name, task.split, len(task.pairs), value, remark))
    return STSResults(tuple(scores))


def spearman(encode: Encode, pairs: Sequence[GradedPair]) -> float:
    """Spearman x 100 on graded pairs; NaN where it is undefined (all similarities or all scores equal)."""
    row = _rows(pairs)
    return _score(_encode(encode, list(row)), row, pairs)[0]


def cosine(first: np.ndarray, second: np.ndarray) -> NDArray[np.float64]:
    """Cosine of the rows of two [n, hidden] arrays, [n], in float64; 0 where a row is zero."""
    first, second = first.astype(np.float64), second.astype(np.float64)
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    products: NDArray[np.float64] = np.einsum("nh,nh->n", first, second)
    return np.divide(products, norms, out=np.zeros_like(products), where=norms != 0)


def _rows(pairs: Iterable[GradedPair]) -> dict[str, int]:
    """Distinct sentences and the row of each among the embeddings."""
    distinct = dict.fromkeys(sentence for _, *sentences in pairs for sentence in sentences)
    return {sentence: index for index, sentence in enumerate(distinct)}


def _encode(encode: Encode, sentences: list[str]) -> np.ndarray:
    embeddings = np.asarray(encode(sentences))
    if embeddings.ndim != 2 or len(embeddings) != len(sentences):
        raise ValueError(f"encode gave an array of shape {embeddings.shape} for {len(sentences)} sentences")
    return embeddings


def _score(embeddings: np.ndarray, row: dict[str, int], pairs: Sequence[GradedPair]) -> tuple[float, str]:
    """Spearman x 100 and a remark that is empty unless the correlation is undefined."""
    first = embeddings[[row[pair[1]] for pair in pairs]]
    second = embeddings[[row[pair[2]] for pair in pairs]]
    human = np.array([pair[0] for pair in pairs])
    similarity = cosine(first, second)
    if not np.isfinite(similarity).all():
        return math.nan, "undefined: the embeddings contain NaN or infinity"
    if np.ptp(human) == 0:
        return math.nan, "undefined: all human scores are equal"
    if np.ptp(similarity) < RESOLUTION:
        return math.nan, "undefined: all similarities are equal, the embeddings have collapsed"
    return 100 * float(spearmanr(human, similarity).statistic), ""
