"""Sensitivity to edits: is a sentence nearer to its paraphrase than to an edit that changes its meaning?

The triples come from the package's grammar. It writes caption-like English, so any English model can be measured.
"""

from __future__ import annotations

import math

import numpy as np

from diffcse_scale.embedded.grammar import EDITS, edited_triples
from diffcse_scale.evaluation import scores
from diffcse_scale.evaluation.bootstrap import share
from diffcse_scale.evaluation.scores import NOT_FINITE, Results, Score
from diffcse_scale.evaluation.sentence_encoder import Encode, Once
from diffcse_scale.evaluation.sts import cosine
from diffcse_scale.foundation.errors import InputError, quoted

MEASURE = "right order, %"
MEAN = "mean of the kinds of edits"
TRIPLES = 400  # per kind
Triple = tuple[str, str, str]


def load_edits(kinds: list[str] | None) -> dict[str, list[Triple]]:
    """Triples (sentence, other wording, edit) by kind of edit. They are the same in every call.

    Raises:
        InputError: a kind does not exist.
    """
    for kind in kinds or ():
        if kind not in EDITS:
            raise InputError(f"Suite edits has no {quoted(kind)}; there are {', '.join(EDITS)}.")
    return {kind: edited_triples(kind, TRIPLES, seed=0) for kind in kinds or EDITS}


def evaluate_edits(encode: Encode, triples: dict[str, list[Triple]]) -> Results:
    """Percentage of sentences whose cosine with the other wording is larger than with the edit, for each kind."""
    once = Once(encode)
    once.remember([sentence for rows in triples.values() for row in rows for sentence in row])
    found = tuple(_score(once, kind, rows) for kind, rows in triples.items())
    return Results("edits", found, (scores.mean_score(MEAN, found),) if len(found) == len(EDITS) else ())


def _score(encode: Once, kind: str, rows: list[Triple]) -> Score:
    sentence, wording, edit = (encode([row[place] for row in rows]) for place in range(3))
    if not all(np.isfinite(vectors).all() for vectors in (sentence, wording, edit)):
        return Score(kind, "test", MEASURE, math.nan, len(rows), NOT_FINITE)
    right = cosine(sentence, wording) > cosine(sentence, edit)
    return scores.score(kind, "test", MEASURE, len(rows), 100 * float(right.mean()), share(right))
