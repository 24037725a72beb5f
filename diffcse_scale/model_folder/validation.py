"""Reads an export again before it gets its name, to check its weights and compare its vectors with its source's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from torch import nn

from diffcse_scale.embedded.grammar import training_sentences
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.foundation.finite import check_rows
from diffcse_scale.model_folder.load import load_model, truncate_at

Vectors = NDArray[np.float32]
TOLERANCE = 1e-5


@torch.inference_mode()
def expected_vectors(source: Path, max_length: int | None, projection: nn.Module | None, normalize: bool) -> Vectors:
    """The vectors that an export must give for the probe sentences, computed with the source and plain PyTorch.

    Raises:
        InputError: the source cannot be loaded, has vectors that are not finite, or cannot read so many tokens; or the
            projection has another width.
    """
    model, _ = load_model(source)
    truncate_at(model, max_length)
    vectors = torch.from_numpy(projected(_probe(model), projection, source))
    return (nn.functional.normalize(vectors) if normalize else vectors).numpy()


@torch.inference_mode()
def projected(vectors: Vectors, projection: nn.Module | None, source: Path) -> Vectors:
    """Vectors [n, dimension] of the model in `source` after the projection, if there is one.

    Raises:
        InputError: the projection has another width.
    """
    try:
        return vectors if projection is None else projection(torch.from_numpy(vectors)).numpy()
    except RuntimeError as error:
        raise InputError(f"The projection of the run does not fit the model in {source}: {error}.") from error


def check_export(fresh: Path, source: Path, expected: Vectors) -> SentenceTransformer:
    """Load a written export, and compare the vectors of the probe sentences.

    Raises:
        InputError: a component differs by more than `TOLERANCE`, relative to the largest if that is more than 1.
    """
    model, _ = load_model(fresh)
    found = _probe(model)
    same = found.shape == expected.shape
    difference = largest_difference(found, expected) if same else float("inf")
    if not difference <= TOLERANCE:
        raise InputError(
            f"The export does not reproduce the vectors of the model in {source} (they differ by {difference:.1e}, "
            f"allowed is {TOLERANCE:.0e}); nothing was written."
        )
    return model


def largest_difference(found: Vectors, expected: Vectors) -> float:
    """Largest absolute difference of a component, relative to the largest component if that is more than 1."""
    return float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max()))


def _probe(model: SentenceTransformer) -> Vectors:
    """Vectors [n, dimension] of texts with one and with many sentences, in float32 on the CPU."""
    texts = training_sentences(40, seed=0)
    vectors: Vectors = model.to("cpu").float().encode([*texts[:7], " ".join(texts)], show_progress_bar=False)
    check_rows(vectors, "of the texts that the model is tried with", "choose another model; nothing was written")
    return vectors
