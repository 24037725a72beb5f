"""Edits a whole corpus with the generator before training, once, and keeps the result in the cache."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import multiprocessing
from tqdm import tqdm

from diffcse_scale.foundation.durable import publish, replacing
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.foundation.file_digest import sha256_of
from diffcse_scale.foundation.locks import shared_lock
from diffcse_scale.foundation.randomness import derive_seed
from diffcse_scale.foundation.strict_json import to_json
from diffcse_scale.model.backbone import load_tokenizers, without_weights
from diffcse_scale.model.generator import load_generator
from diffcse_scale.recipe import Recipe
from diffcse_scale.text.batches import make_chunk, padding_id
from diffcse_scale.text.cache import cache_folder, try_to_write, workers, writing
from diffcse_scale.text.corruption import Corruption
from diffcse_scale.text.edits import FACTS, edits_folder, missing_versions, name_of
from diffcse_scale.text.prepared import unfinished
from diffcse_scale.text.tokenizers import Tokenizers
from diffcse_scale.text.tokens import TokenizedCorpus, new_array, tokenize

log = logging.getLogger(__name__)

SENTENCES = 256  # sentences that the generator edits at once
SORTED = 256 * SENTENCES  # sentences that are sorted by length together


def make_edits(recipe: Recipe, tokenizers: Tokenizers) -> TokenizedCorpus:
    """Tokenize the corpus, and make the missing ones of the versions that `objective.edits` requests.

    There is one process per GPU, or `data.workers` processes on the CPU. The random numbers of a token depend only on
    its sentence, column and version, so the files do not depend on how the work is divided.

    Raises:
        InputError: as for `tokenize` and `load_generator`, or the recipe has no RTD.
    """
    if recipe.objective.rtd_weight == 0 or recipe.model.generator is None:
        raise InputError("There is nothing to edit: objective.rtd_weight is 0; leave --edits out.")
    with without_weights():  # reports mistakes before any work is done
        load_generator(_editing(recipe), tokenizers, torch.device("meta"))
    tokens = tokenize(recipe.data, tokenizers.streams, seed=recipe.seed)
    folder, cache, wanted = edits_folder(tokens, recipe), cache_folder(recipe.data), recipe.objective.edits or 0
    if not missing_versions(folder, tokens, cache, wanted)[0]:
        return tokens
    with writing(cache):
        try_to_write(cache)
        with shared_lock(folder), unfinished(folder, cache) as fresh:
            missing, damaged = missing_versions(folder, tokens, cache, wanted)
            if damaged:
                log.error("Made again, because it is damaged: %s (%s).", folder, ", ".join(damaged))
            if missing:
                _make(recipe, tokens, fresh, missing)
                _place(fresh, folder, wanted)
    return tokens


def _make(recipe: Recipe, tokens: TokenizedCorpus, folder: Path, versions: list[int]) -> None:
    """Write the given versions into a new folder."""
    folder.mkdir()
    for version in versions:
        for column in range(tokens.columns):
            new_array(folder / name_of(version, column), np.int32, tokens.size(column, _stream(tokens)))
    devices = torch.cuda.device_count()
    processes = devices or workers(recipe.data)
    multiprocessing.spawn(_work, (processes, recipe, folder, versions), nprocs=processes)


def _place(fresh: Path, folder: Path, wanted: int) -> None:
    """Move the new versions beside the others, and record them.

    Another process that makes the same versions at the same time writes the same bytes.
    """
    folder.mkdir(exist_ok=True)
    for file in sorted(fresh.iterdir()):
        publish(file, folder / file.name)
    versions = sorted(folder.glob("version_*.npy"))
    facts = {"versions": wanted, "digests": {file.name: sha256_of(file) for file in versions}}
    with replacing(folder / FACTS, fresh=fresh / FACTS) as facts_file:
        facts_file.write(to_json(facts))


def _work(worker: int, count: int, recipe: Recipe, folder: Path, versions: list[int]) -> None:
    """Edit every `count`-th run of sentences of similar length, in all versions."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    device = torch.device("cuda", worker) if torch.cuda.is_available() else torch.device("cpu")
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // count))
    tokenizers = load_tokenizers(recipe.model)
    tokens = tokenize(recipe.data, tokenizers.streams, seed=recipe.seed, main=False)
    generator = load_generator(_editing(recipe), tokenizers, device)
    assert generator is not None
    tokenizer, stream = tokenizers.discriminator, _stream(tokens)
    corruption = Corruption.of(tokenizer, recipe.objective.masking_ratio, derive_seed(recipe.seed, "corruption"))
    padding = padding_id(tokenizer)
    for column in range(tokens.columns):
        for version in tqdm(versions, desc="editing", unit="version", disable=None if worker == 0 else True):
            written = np.load(folder / name_of(version, column), mmap_mode="r+")
            for run in itertools.islice(_runs(tokens, column), worker, None, count):
                lengths = tokens.lengths(column, run, stream)
                ids = tokens.padded(run, column, int(lengths.max()), padding, stream)[:, None]
                rows = (version * len(tokens) + run[:, None]) * tokens.columns + column
                chunk = make_chunk([(ids, lengths[:, None])], rows, corruption, packed=True).to(device)
                edited = generator.edit(chunk)[:, 0].cpu().numpy()
                for sentence, length, row in zip(run.tolist(), lengths.tolist(), edited, strict=True):
                    written[tokens.place(sentence, column, stream)] = row[:length]
            written.flush()


def _runs(tokens: TokenizedCorpus, column: int) -> Iterator[NDArray[np.int64]]:
    """All sentences in runs of similar length. One part of the corpus at a time is in memory and sorted."""
    for start in range(0, len(tokens), SORTED):
        part = np.arange(start, min(start + SORTED, len(tokens)))
        order = part[np.argsort(tokens.lengths(column, part, _stream(tokens)), kind="stable")]
        yield from np.split(order, range(SENTENCES, len(order), SENTENCES))


def _stream(tokens: TokenizedCorpus) -> int:
    """The stream of tokens that generator and discriminator share: the last one."""
    return tokens.streams - 1


def _editing(recipe: Recipe) -> Recipe:
    """The recipe of a run that edits during training."""
    objective = recipe.objective.model_copy(update={"edits": None})
    return recipe.model_copy(update={"objective": objective})
