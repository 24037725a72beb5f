"""Edits made before training: several versions of each sentence, in the layout of the corpus's tokens."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.recipe import Recipe
from diffcse_scale.text.cache import cache_folder, fingerprint
from diffcse_scale.text.digests import digest, model_digest
from diffcse_scale.text.prepared import NO_CONTENT
from diffcse_scale.text.tokens import TokenizedCorpus

FACTS = "facts.json"
FORMAT = 2  # in format 1 a generator with more rows than its tokenizer has ids wrote ids that no network reads


class Edits:
    """Versions 0 to K - 1 of every sentence; `version_V_COLUMN.npy` has int32 ids, like the corpus's `ids_*.npy`.

    A version is what the generator would make of the sentence in one epoch: each has new corruption and sampling. If a
    run needs more edits (views x epochs) than there are versions, the versions repeat.
    """

    def __init__(self, folder: Path, tokens: TokenizedCorpus, versions: int) -> None:
        self._tokens, self.versions = tokens, versions
        self._ids = [
            [np.asarray(np.load(folder / name_of(version, column), mmap_mode="r")) for column in range(tokens.columns)]
            for version in range(versions)
        ]

    def padded(self, indices: NDArray[np.int64], epoch: int, view: int, length: int, padding: int) -> NDArray[np.int64]:
        """Edited ids of some sentences, int64 [len(indices), length], with `padding` on the right."""
        shared = self._tokens.columns == 1  # the views have the same tokens, but different edits
        version = (epoch * self._tokens.views + view if shared else epoch) % self.versions
        ids = self._ids[version][0 if shared else view]
        return self._tokens.padded(indices, view, length, padding, self._tokens.streams - 1, ids)


def edits_folder(tokens: TokenizedCorpus, recipe: Recipe) -> Path:
    """The folder of the edits that the recipe's generator makes of these tokens, for any number of versions."""
    assert recipe.model.generator is not None
    name = fingerprint(
        FORMAT,
        tokens.fingerprint,
        model_digest(recipe.model.generator, cache_folder(recipe.data)),
        recipe.objective.masking_ratio,
        recipe.seed,
    )
    return cache_folder(recipe.data) / f"edits-{name}"


def name_of(version: int, column: int) -> str:
    """The name of a file in the folder of edits."""
    return f"version_{version}_{column}.npy"


def missing_versions(folder: Path, tokens: TokenizedCorpus, cache: Path, wanted: int) -> tuple[list[int], list[str]]:
    """The versions among the first `wanted` that are missing or incomplete, and the names of damaged files."""
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        versions, digests = int(facts["versions"]), dict(facts.get("digests", {}))  # earlier versions had no digests
    except FileNotFoundError:
        return list(range(wanted)), []
    except NO_CONTENT:
        return list(range(wanted)), [FACTS]
    missing, damaged = list(range(versions, wanted)), []
    for version in range(min(versions, wanted)):
        for column in range(tokens.columns):
            name, size = name_of(version, column), tokens.size(column, tokens.streams - 1)
            if not _is_whole(folder / name, size, digests.get(name), cache):
                missing.append(version)
                damaged.append(name)
    return sorted(set(missing)), damaged


def _is_whole(file: Path, size: int, expected: str | None, cache: Path) -> bool:
    try:
        there = np.load(file, mmap_mode="r").shape == (size,)
    except (FileNotFoundError, *NO_CONTENT):
        return False
    return there and (expected is None or digest(file, cache) == expected)


def load_edits(tokens: TokenizedCorpus, recipe: Recipe) -> Edits | None:
    """The recipe's prepared edits; None if the generator edits during training.

    Raises:
        InputError: edits are missing, too few, or damaged.
    """
    versions = recipe.objective.edits
    if versions is None or recipe.objective.rtd_weight == 0:
        return None
    folder = edits_folder(tokens, recipe)
    missing, damaged = missing_versions(folder, tokens, cache_folder(recipe.data), versions)
    if missing:
        broken = f" (damaged: {', '.join(damaged)})" if damaged else ""
        raise InputError(
            f"objective.edits = {versions}, but only {versions - len(missing)} edited versions of this corpus are in "
            f"{folder.parent}{broken}; make them with `diffcse-scale prepare --edits {versions}` and the same recipe."
        )
    return Edits(folder, tokens, versions)
