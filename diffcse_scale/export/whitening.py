"""Whitening of an exported model's vectors, learnt on a sample of text.

Whitened vectors of the sample have mean 0 and variance 1 in every kept direction: Su et al. 2021 (arXiv 2103.15316).
Whitening is a `Dense` module of the folder, so every library that reads the folder applies it. Only `Normalize` may
follow it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.foundation.finite import check_rows
from diffcse_scale.model_folder.appended_projection import Dense, append_dense
from diffcse_scale.model_folder.load import load_model, truncate_at
from diffcse_scale.model_folder.validation import projected
from diffcse_scale.recipe import DataRecipe
from diffcse_scale.text.corpus import load_corpus
from diffcse_scale.text.shortening import shortened

SAMPLE = 5000  # sentences, evenly spaced in the whole text; wide vectors need more
SENTENCES_A_NUMBER = 4  # minimum number of sentences per dimension
ROUNDING = 1e-9  # share of the mean squared length; less variance than this may be float32 rounding
IDENTITY = "torch.nn.modules.linear.Identity"


def learn_whitening(
    folder: Path, max_length: int | None, projection: nn.Module | None, files: Sequence[str]
) -> nn.Linear:
    """Learn the map from a model's vectors [n, H] to whitened ones [n, H / 2], along the first principal components.

    Args:
        projection: applied to the vectors before whitening; None for no projection.
        files: the text files.

    Raises:
        InputError: a file is missing or malformed, there are too few sentences, or the vectors are not finite or vary
            in too few directions.
    """
    corpus = load_corpus(DataRecipe(files=list(files)))
    model, _ = load_model(folder, device="cpu")
    truncate_at(model, max_length)

    def vectors_of(sentences: list[str]) -> NDArray[np.float64]:
        texts = shortened(model.tokenizer, sentences, model.max_seq_length)
        return projected(model.float().encode(texts, show_progress_bar=False), projection, folder).astype(np.float64)

    width = vectors_of(evenly(corpus, 1)).shape[1]
    needed = SENTENCES_A_NUMBER * width
    if len(corpus) < needed:
        raise InputError(
            f"--whiten has {len(corpus):,} distinct sentences; embeddings of width {width:,} need at least {needed:,}: "
            "give more text."
        )
    vectors = vectors_of(evenly(corpus, max(SAMPLE, needed)))
    check_rows(vectors, "of the text of --whiten", "choose another model or text; nothing was written")
    dense = whitening(vectors, width // 2)
    linear = nn.Linear(dense.weight.shape[1], dense.weight.shape[0])
    linear.load_state_dict({"weight": dense.weight, "bias": dense.bias})
    return linear


def evenly(corpus: datasets.Dataset, count: int) -> list[str]:
    """Up to `count` sentences, evenly spaced in the text."""
    chosen = np.linspace(0, len(corpus) - 1, min(count, len(corpus))).round().astype(int)
    return list(corpus.select(chosen)["text_0"])


def whitening(vectors: NDArray[np.float64], components: int) -> Dense:
    """The layer that gives `vectors` [n, H] mean 0 and variance 1 along each of their first `components` components.

    Raises:
        InputError: the vectors vary in fewer directions.
    """
    mean = vectors.mean(0)
    variances, directions = np.linalg.eigh(np.cov(vectors, rowvar=False))
    variances, directions = variances[::-1][:components], directions[:, ::-1][:, :components]
    if not variances[-1] > ROUNDING * np.square(vectors).sum(axis=1).mean():
        raise InputError("The embeddings of the --whiten text vary in too few directions; give more or different text.")
    weight = (directions / np.sqrt(variances)).T
    return Dense(torch.from_numpy(weight).float(), torch.from_numpy(-weight @ mean).float(), IDENTITY)


def append_whitening(folder: Path, linear: nn.Linear) -> None:
    """Append whitening to the modules of an exported folder."""
    append_dense(folder, Dense(linear.weight.detach(), linear.bias.detach(), IDENTITY))
