"""Measuring sentence embeddings. Nothing here asks for more than a function that encodes sentences."""

from __future__ import annotations

from diffcse_scale.evaluation.sts import Encode, STSResults, TaskScore, evaluate_sts, spearman
from diffcse_scale.evaluation.tasks import STS_TASKS, GradedPair, TaskPairs, load_sts, read_pairs

__all__ = [
    "STS_TASKS",
    "Encode",
    "GradedPair",
    "STSResults",
    "TaskPairs",
    "TaskScore",
    "evaluate_sts",
    "load_sts",
    "read_pairs",
    "spearman",
]
