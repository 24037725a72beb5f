"""Measuring sentence embeddings. Everything here needs only a function that encodes sentences."""

from __future__ import annotations

from diffcse_scale.evaluation.geometry import evaluate_geometry
from diffcse_scale.evaluation.scores import Results, Score
from diffcse_scale.evaluation.sentence_encoder import Encode
from diffcse_scale.evaluation.sts import evaluate_sts, spearman
from diffcse_scale.evaluation.tasks import STS_TASKS, GradedPair, TaskPairs, load_sts, read_pairs
from diffcse_scale.evaluation.transfer import evaluate_transfer
from diffcse_scale.evaluation.transfer_tasks import TRANSFER_TASKS, load_transfer

__all__ = [
    "STS_TASKS",
    "TRANSFER_TASKS",
    "Encode",
    "GradedPair",
    "Results",
    "Score",
    "TaskPairs",
    "evaluate_geometry",
    "evaluate_sts",
    "evaluate_transfer",
    "load_sts",
    "load_transfer",
    "read_pairs",
    "spearman",
]
