"""Embeddings of the development set by the untrained and the trained encoder of a run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from diffcse_scale.evaluation import Encode, GradedPair
from diffcse_scale.evaluation.sentence_encoder import encode_with
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.foundation.finite import rows_not_finite
from diffcse_scale.foundation.paths import given_path
from diffcse_scale.model.backbone import load_tokenizers
from diffcse_scale.model.build import build_model
from diffcse_scale.model.encoder import encode_sentences
from diffcse_scale.model_folder.load import load_model
from diffcse_scale.recipe import Recipe
from diffcse_scale.runs.read import Run
from diffcse_scale.training.development import development_pairs

log = logging.getLogger(__name__)

BATCH = 128  # sentences
# the recipe fields that determine an untrained encoder's embeddings
OF_ENCODER = {"encoder", "pooling", "attention", "checkpoint", "lora"}


@dataclass
class Encodings:
    """Sentence embeddings of one run.

    Attributes:
        pairs: the development set; empty if the run has none that can be read.
        sentences: the distinct sentences of the pairs, and the samples.
        samples: the sentences whose neighbours are shown.
        before, after: embeddings [n, H] of `sentences` by the untrained and the trained encoder; None if missing.
        same_before: number of an earlier run with the same untrained encoder and development set.
        problems: sentences that say what is missing and why.
    """

    pairs: list[GradedPair] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)
    samples: list[str] = field(default_factory=list)
    before: NDArray[np.float32] | None = None
    after: NDArray[np.float32] | None = None
    same_before: int | None = None
    problems: list[str] = field(default_factory=list)


def encode_runs(runs: Sequence[Run], data: str | None, samples: Sequence[str], count: int) -> list[Encodings]:
    """Encode every run's development set with both encoders. Anything unreadable becomes a sentence in `problems`.

    Args:
        data: a development set to use instead of the recipes' own, in the form of `evaluation.data`.
        samples: sentences whose neighbours are shown; if empty, `count` sentences of the development set.

    Raises:
        InputError: `data` cannot be read.
    """
    found: list[Encodings] = []
    encoded: dict[str, int] = {}
    for number, run in enumerate(runs):
        own = _development(run, data)
        own.samples = list(samples) or spread(own.sentences, count)
        own.sentences = list(dict.fromkeys([*own.sentences, *own.samples]))
        found.append(own)
        if not own.pairs:
            continue
        model = run.recipe.model.model_dump(include=OF_ENCODER)
        key = repr((model, run.recipe.evaluation.max_length, own.pairs, own.samples))
        if key in encoded:
            own.same_before = encoded[key]
            own.before = found[own.same_before].before
        else:
            encoded[key] = number
            _untrained(run, own)
        _trained(run, own)
    return found


def spread(sentences: Sequence[str], count: int) -> list[str]:
    """`count` evenly spaced sentences."""
    count = min(count, len(sentences))
    return [sentences[number * len(sentences) // count] for number in range(count)]


def _development(run: Run, data: str | None) -> Encodings:
    own = Encodings()
    try:
        own.pairs = development_pairs(data or run.recipe.evaluation.data) or []
    except InputError as error:
        if data is not None:
            raise
        own.problems.append(f"{str(error).rstrip('.')}; give another place with --data.")
    if not own.pairs and not own.problems:
        own.problems.append("The recipe names no development set (evaluation.data); give one with --data.")
    own.sentences = list(dict.fromkeys(sentence for pair in own.pairs for sentence in pair[1:]))
    return own


def _untrained(run: Run, own: Encodings) -> None:
    try:
        recipe = without_detection(run.recipe)
        tokenizers = load_tokenizers(recipe.model)
        encoder = build_model(recipe, tokenizers).encoder
    except InputError as error:
        own.problems.append(f"The untrained encoder cannot be read: {error}")
        return
    length = recipe.evaluation.max_length
    vectors = _encode(
        lambda sentences: encode_sentences(encoder, tokenizers.encoder, sentences, length, BATCH),
        own.sentences,
        f"{run.label}, untrained",
    )
    own.before = _finite(own, vectors, "untrained")


def _trained(run: Run, own: Encodings) -> None:
    if run.model is None:
        own.problems.append("There is no trained encoder yet; the first evaluation saves one.")
        return
    try:
        model, _ = load_model(run.model)
    except InputError as error:
        own.problems.append(f"The trained encoder cannot be read: {error}")
        return
    vectors = _encode(
        encode_with(model, batch_size=BATCH, show_progress_bar=False),
        own.sentences,
        f"{run.label}, trained",
    )
    own.after = _finite(own, vectors, "trained")


def _finite(own: Encodings, vectors: NDArray[np.float32], which: str) -> NDArray[np.float32] | None:
    """The vectors; if some are not finite, None, and a sentence in `problems`."""
    if not len(rows_not_finite(vectors)):
        return vectors
    own.problems.append(f"The {which} encoder's embeddings are not finite.")
    return None


def _encode(encode: Encode, sentences: list[str], title: str) -> NDArray[np.float32]:
    """Encode in batches, the longest sentences first, with a progress bar."""
    order = sorted(range(len(sentences)), key=lambda row: -len(sentences[row]))
    batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    bar = tqdm(batches, desc=title, unit="batch", disable=None)
    vectors = np.concatenate([encode([sentences[row] for row in batch]) for batch in bar])
    found: NDArray[np.float32] = vectors[np.argsort(order)]
    return found


def without_detection(recipe: Recipe) -> Recipe:
    """The recipe without replaced-token detection, so that only the encoder is built."""
    objective = recipe.objective.model_copy(update={"rtd_weight": 0.0})
    return recipe.model_copy(update={"objective": objective})


def read_samples(file: Path | None) -> list[str]:
    """The sentences of a text file, one per line, without empty lines.

    Raises:
        InputError: the file cannot be read or has no sentence.
    """
    if file is None:
        return []
    try:
        lines = given_path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InputError(
            f"Sentences {file} cannot be read: {reason}; give a text file with one sentence per line."
        ) from None
    sentences = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not sentences:
        raise InputError(f"{file} has no sentence; give a text file with one sentence per line.")
    return sentences
