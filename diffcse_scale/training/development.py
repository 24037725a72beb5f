"""What is measured while training: similarity of held-out pairs, and replaced-token detection on their sentences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from diffcse_scale.distributed import all_sum, rank, world_size
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
from diffcse_scale.text.batches import collate
from diffcse_scale.text.cache import cache_folder, fingerprint
from diffcse_scale.text.digests import model_digest
from diffcse_scale.text.shortening import truncated_ids
from diffcse_scale.text.tokenizers import Tokenizers
from diffcse_scale.text.tokens import MOST_UNKNOWN, TokenizedCorpus
from diffcse_scale.text.unknown import percent, share_unknown

EMBEDDED_PAIRS = 1500
# enough replaced tokens for a recall's standard error below 1%
ENOUGH_REPLACED = 5000


def development_pairs(source: str | None) -> list[GradedPair] | None:
    """The graded pairs that `evaluation.data` of a recipe names, or None where it names none.

    Raises:
        InputError: missing or malformed data.
    """
    if source is None:
        return None
    if source == EMBEDDED:
        # one fixed set, whatever the run's seed: scores of several seeds can be compared
        return graded_pairs(EMBEDDED_PAIRS, seed=0)
    (task,) = load_sts(source, names=["STS-B dev"])
    return task.pairs


def fingerprints(recipe: Recipe, tokens: TokenizedCorpus, development: DevelopmentSet | None) -> dict[str, str]:
    """What a run may be resumed with, as the content of what the recipe names: corpus, development pairs, models."""
    names = (recipe.model.encoder, recipe.model.discriminator, recipe.model.generator)
    cache = cache_folder(recipe.data)
    return {
        "data_fingerprint": tokens.fingerprint,
        "development_fingerprint": fingerprint(development and development.pairs),
        "models_fingerprint": fingerprint([name and model_digest(resolve(name), cache) for name in names]),
    }


class DevelopmentSet:
    """Graded pairs that choose the best checkpoint: STS-B dev, or the recipe's own.

    Attributes:
        unknown: share of the tokens that the encoder's tokenizer does not know, of the side that has more of them.
    """

    def __init__(self, pairs: list[GradedPair], tokenizers: Tokenizers, max_length: int) -> None:
        self.pairs = pairs
        self.tokenizers = tokenizers
        self.max_length = max_length
        sides = [first for _, first, _ in pairs], [second for *_, second in pairs]
        self.unknown = max(share_unknown(tokenizers.encoder, texts, max_length) for texts in sides)

    def __str__(self) -> str:
        """How many pairs, and how much of one side of them is unknown."""
        return f"{len(self.pairs):,} pairs, {percent(self.unknown)} of the tokens unknown"

    @classmethod
    def of(cls, recipe: Recipe, tokenizers: Tokenizers) -> DevelopmentSet | None:
        """The set that `recipe.evaluation.data` names, or None where it names none.

        Raises:
            InputError: missing or malformed data, fewer than two different scores, or MOST_UNKNOWN of the tokens are
                unknown.
        """
        pairs = development_pairs(recipe.evaluation.data)
        if pairs is None:
            return None
        found = cls(pairs, tokenizers, recipe.evaluation.max_length)
        if len({score for score, *_ in pairs}) < 2:
            raise InputError(
                f"evaluation.data = {recipe.evaluation.data} has {len(pairs)} pairs of one score, which rank no "
                "encoder above another; give pairs of different scores, or evaluation.data=null."
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

    @torch.no_grad()
    def rtd_accuracy(
        self,
        model: DiffCSENetworks,
        generator: Generator,
        recipe: Recipe,
        device: Any,
        tick: Callable[[], None] = lambda: None,
    ) -> dict[str, float]:
        """Recall on replaced and on kept tokens and their mean, dropout off, over at least 5,000 replaced tokens.

        Sentences are edited again, with new corruption, until there are enough. Called on every rank: all make as many
        passes, and where they are more than the sentences, several have the same one and corrupt it differently.
        """
        sentences = sorted({sentence for pair in self.pairs for sentence in pair[1:]})
        each = max(1, len(sentences) // world_size())
        mine = [sentences[(rank() + turn * world_size()) % len(sentences)] for turn in range(each)]
        streams = [truncated_ids(tokenizer, mine, recipe.data.max_length) for tokenizer in self.tokenizers.streams]
        was_training = model.training
        model.eval()
        total = torch.zeros(4, dtype=torch.float64, device=device)
        starts = range(0, len(mine), 64)
        for number in range(20 * len(starts)):  # new corruption each time around
            tick()
            repetition, index = divmod(number, len(starts))
            rows = [tokens[starts[index] : starts[index] + 64] for tokens in streams]
            first_row = (repetition * world_size() + rank()) * len(mine) + starts[index]
            views, ratio = [[tokens, tokens] for tokens in rows], recipe.objective.masking_ratio
            chunk = collate(views, self.tokenizers, ratio, seed=0, first_row=first_row).to(device)
            z = model.project(model.encode(chunk))
            total += torch.stack(model.detect(chunk, generator.edit(chunk), z).counts)
            if float(all_sum(total)[1]) >= ENOUGH_REPLACED:
                break
        model.train(was_training)
        real, replaced, right_replaced, right_kept = all_sum(total).tolist()
        recalls = right_replaced / max(replaced, 1), right_kept / max(real - replaced, 1)
        return {
            "rtd_replaced_tokens": replaced,
            "rtd_recall_replaced": recalls[0],
            "rtd_recall_kept": recalls[1],
            "rtd_balanced_accuracy": sum(recalls) / 2,
        }
