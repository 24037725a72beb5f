"""Sensitivity to edits: the triples are what they say, and the score tells encoders apart."""

from __future__ import annotations

import numpy as np
import pytest

from diffcse_scale.embedded.grammar import EDITS, edited_triples, training_sentences
from diffcse_scale.evaluation.sensitivity import MEAN, evaluate_edits, load_edits
from diffcse_scale.evaluation.suites import load_suites

TRIPLES = load_edits(None)


def bags(sentences: list[str], words: dict[str, int]) -> np.ndarray:
    """Counts of words: what an encoder knows that does not read their order."""
    found = np.zeros((len(sentences), 4096), np.float32)
    for row, sentence in zip(found, sentences, strict=True):
        for word in sentence.split():
            row[words.setdefault(word, len(words))] += 1
    return found


@pytest.mark.parametrize("kind", EDITS)
def test_an_edit_is_nearer_in_words_than_the_other_wording(kind: str) -> None:
    """So that a model which counts words gets nearly all of them wrong."""
    words: dict[str, int] = {}
    results = evaluate_edits(lambda sentences: bags(sentences, words), {kind: TRIPLES[kind]})
    assert results[kind].value < 35
    low, high = results[kind].interval
    assert low <= results[kind].value <= high
    assert not results.means  # of one kind there is none


def test_an_encoder_that_knows_the_meaning_gets_them_right() -> None:
    meaning = {
        sentence: number * 3 + (place == 2)
        for number, row in enumerate(row for rows in TRIPLES.values() for row in rows)
        for place, sentence in enumerate(row)
    }

    def encode(sentences: list[str]) -> np.ndarray:
        angles = np.array([meaning[sentence] for sentence in sentences])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1)

    assert evaluate_edits(encode, TRIPLES)[MEAN].value > 97  # a sentence may be in two triples


def test_triples_are_held_out_distinct_and_always_the_same() -> None:
    training = set(training_sentences(1000, seed=42))
    for kind, rows in TRIPLES.items():
        assert rows[:20] == edited_triples(kind, 20, seed=0) and len(set(rows)) == len(rows)
        assert all(len(set(row)) == 3 for row in rows)
        assert not training & {sentence for row in rows for sentence in row[:2]}


def test_it_needs_no_data_and_has_parts() -> None:
    (one,), (other,) = (load_suites([f"edits:{kind}"], None) for kind in ("negation", "number"))
    assert one.part and other.part and one.data != other.data


def test_embeddings_that_are_not_finite_have_no_score() -> None:
    results = evaluate_edits(lambda sentences: np.full((len(sentences), 2), np.nan), {"number": TRIPLES["number"]})
    assert np.isnan(results["number"].value) and "NaN" in results["number"].remark
