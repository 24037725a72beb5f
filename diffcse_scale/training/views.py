"""Checks on a probe that two views of one sentence differ, before anything expensive begins."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from diffcse_scale.distributed import agree
from diffcse_scale.engine.launch import device
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.foundation.randomness import derive_seed
from diffcse_scale.model.networks import DiffCSENetworks
from diffcse_scale.recipe import Recipe
from diffcse_scale.text.batches import Chunk, make_chunk
from diffcse_scale.text.sources import find_sources
from diffcse_scale.text.tokenizers import known_ids, special_ids

PROBES, PROBE_LENGTH = 4, 16
# relative difference that may be rounding. Without dropout the views were equal in every model family of the tests,
# also in bfloat16. With a dropout of 0.001 they differed by 3e-3 or more.
TOLERANCE = 1e-3


def check_views_differ(engine: Any, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse to contrast a sentence with itself. Called on every rank.

    The encoder encodes two views of a probe as in every step: through the engine, in training mode. Searching for
    dropout layers would not be enough. New adapters have no effect, so their dropout has none either. Some model
    families ignore the dropout in their configuration.

    Args:
        engine: the DeepSpeed engine around an untrained `DiffCSENetworks`.
        tokenizer: the encoder's.

    Raises:
        InputError: the views are equal, the corpus has one column, and the recipe does not set `model.dropout: 0`.
    """
    if len(recipe.data.columns or ()) > 1 or recipe.objective.contrastive_weight == 0 or recipe.model.dropout == 0:
        return
    engine.train()
    # compiled layers have the same dropout as eager ones, so compiling them for the probe is not worth it
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        views = engine(DiffCSENetworks.encode, _probe(recipe, tokenizer)).double().unflatten(0, (-1, 2))
    difference = torch.linalg.vector_norm(views[:, 0] - views[:, 1]) / torch.linalg.vector_norm(views[:, 0])
    (differ,) = agree(not difference <= TOLERANCE)  # NaN passes: it is a different problem
    if not differ and len(find_sources(recipe.data, recipe.seed)[0].columns(recipe.data.columns)) == 1:
        raise InputError(_refusal(recipe))


def _probe(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Chunk:
    """Rows of tokens from across the vocabulary: whether views differ does not depend on a sentence's meaning."""
    ordinary = np.setdiff1d(known_ids(tokenizer), special_ids(tokenizer))
    length = min(PROBE_LENGTH, recipe.data.max_length)
    row = ordinary[np.linspace(0, len(ordinary) - 1, length).astype(np.int64)]
    rows = np.arange(2 * PROBES).reshape(PROBES, 2)
    stream = np.broadcast_to(row, (PROBES, 2, length)).copy(), np.full((PROBES, 2), length)
    chunk = make_chunk([stream], rows, None, recipe.packed)
    return replace(chunk, seed=derive_seed(recipe.seed, "probe")).to(device())


def _refusal(recipe: Recipe) -> str:
    settings = recipe.model
    if settings.dropout is not None:
        cause = f"model.dropout = {settings.dropout:g} changes nothing in {settings.encoder}"
        remedy = "choose another encoder"
    elif settings.lora is not None:
        cause = f"{settings.encoder} has no dropout, and model.lora.dropout changes nothing before adapters are trained"
        remedy = "set model.dropout=0.1"
    else:
        cause, remedy = f"{settings.encoder} has no dropout", "set model.dropout=0.1"
    return f"The two views of a sentence are equal: {cause}; {remedy}, or name two columns of pairs in data.columns."
