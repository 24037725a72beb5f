"""Measurements during training: similarity of held-out pairs, and replaced-token detection on their words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from diffcse_scale.embedded.grammar import graded_pairs
from diffcse_scale.evaluation.sts import spearman
from diffcse_scale.evaluation.tasks import GradedPair, load_sts
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.foundation.finite import check_rows
from diffcse_scale.model.backbone import resolve
from diffcse_scale.model.encoder import Encoder, encode_sentences
from diffcse_scale.model.generator import Generator
from diffcse_scale.model.networks import DiffCSENetworks
from diffcse_scale.recipe import EMBEDDED, Recipe
from diffcse_scale.text.cache import cache_folder, fingerprint
from diffcse_scale.text.digests import model_digest
from diffcse_scale.text.tokenizers import Tokenizers
from diffcse_scale.text.tokens import MOST_UNKNOWN, TokenizedCorpus
from diffcse_scale.text.unknown import percent, share_unknown
from diffcse_scale.training.detection import measure_detection

EMBEDDED_PAIRS = 1500
# replaced words: with so many, the standard error of the area under the curve is below 0.7% and 0.5%
ENOUGH_DURING, ENOUGH_AT_END = 2000, 5000


def development_pairs(source: str | None) -> list[GradedPair] | None:
    """The graded pairs that a recipe's `evaluation.data` names, or None if it is not set.

    Raises:
        InputError: missing or malformed data.
    """
    if source is None:
        return None
    if source == EMBEDDED:
        # one fixed set for every seed of a run, so that the scores of several seeds can be compared
        return graded_pairs(EMBEDDED_PAIRS, seed=0)
    (task,) = load_sts(source, names=["STS-B dev"])
    return task.pairs


def fingerprints(recipe: Recipe, tokens: TokenizedCorpus, development: DevelopmentSet | None) -> dict[str, str]:
    """Fingerprints of the content that the recipe names: corpus, development pairs, models. A resume needs the same."""
    names = (recipe.model.encoder, recipe.model.discriminator, recipe.model.generator)
    cache = cache_folder(recipe.data)
    return {
        "data_fingerprint": tokens.fingerprint,
        "development_fingerprint": fingerprint(development and development.pairs),
        "models_fingerprint": fingerprint([name and model_digest(resolve(name), cache) for name in names]),
    }


class DevelopmentSet:
    """Graded pairs that select the best encoder: STS-B dev, or the recipe's own file.

    Attributes:
        unknown: share of tokens unknown to the encoder's tokenizer, of the side of the pairs where it is larger.
    """

    def __init__(self, pairs: list[GradedPair], tokenizers: Tokenizers, max_length: int) -> None:
        self.pairs = pairs
        self.tokenizers = tokenizers
        self.max_length = max_length
        sides = [first for _, first, _ in pairs], [second for *_, second in pairs]
        self.unknown = max(share_unknown(tokenizers.encoder, texts, max_length) for texts in sides)

    def __str__(self) -> str:
        """The number of pairs, and the share of unknown tokens."""
        return f"{len(self.pairs):,} pairs, {percent(self.unknown)} of the tokens unknown"

    @classmethod
    def of(cls, recipe: Recipe, tokenizers: Tokenizers) -> DevelopmentSet | None:
        """The set that `recipe.evaluation.data` names, or None if it is not set.

        Raises:
            InputError: missing or malformed data, fewer than two different scores, or more than MOST_UNKNOWN of the
                tokens are unknown.
        """
        pairs = development_pairs(recipe.evaluation.data)
        if pairs is None:
            return None
        found = cls(pairs, tokenizers, recipe.evaluation.max_length)
        if len({score for score, *_ in pairs}) < 2:
            raise InputError(
                f"evaluation.data = {recipe.evaluation.data} has {len(pairs)} pairs, all with the same score, so it "
                "cannot rank encoders; give pairs with different scores, or evaluation.data=null."
            )
        if found.unknown > MOST_UNKNOWN:
            raise InputError(
                f"evaluation.data = {recipe.evaluation.data}: {percent(found.unknown)} of the tokens are unknown to "
                f"the tokenizer of {recipe.model.encoder}; give pairs in its language, or evaluation.data=null."
            )
        return found

    def spearman(self, encoder: Encoder, tick: Callable[[], None] = lambda: None) -> float:
        """Spearman x 100. Called on every rank; `tick` as in `encode_sentences`.

        Raises:
            NotFinite: the encoder has no finite embedding for a sentence.
        """

        def encode(sentences: list[str]) -> np.ndarray:
            found = encode_sentences(encoder, self.tokenizers.encoder, sentences, self.max_length, tick=tick)
            check_rows(found, "of the development sentences", "choose another model.encoder, or compute in float32")
            return found

        return spearman(encode, self.pairs)

    def detection(
        self,
        model: DiffCSENetworks,
        generator: Generator,
        recipe: Recipe,
        device: Any,
        enough: int,
        tick: Callable[[], None] = lambda: None,
    ) -> dict[str, float | None]:
        """`measure_detection` on the sentences of the pairs. Called on every rank."""
        sentences = sorted({sentence for pair in self.pairs for sentence in pair[1:]})
        return measure_detection(sentences, model, generator, self.tokenizers, recipe, device, enough, tick)
