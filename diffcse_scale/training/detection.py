"""Measures on held-out sentences what the discriminator has learnt, and whether it uses z."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffcse_scale.distributed import all_sum, rank, world_size
from diffcse_scale.model.generator import Generator
from diffcse_scale.model.networks import DiffCSENetworks
from diffcse_scale.recipe import Recipe
from diffcse_scale.text.batches import Chunk, collate
from diffcse_scale.text.shortening import truncated_ids
from diffcse_scale.text.tokenizers import Tokenizers, special_ids

SENTENCES = 64  # per pass
BINS, LARGEST_LOGIT = 4096, 16.0  # bins of logits for the ranking: differences below 0.008 count as ties
USES_Z = 0.005  # nats per word: the discriminator uses z if another sentence's z raises its loss by at least this


class _Sums:
    """Sums over words, in float64.

    `numbers` has the words, the replaced words, and the cross-entropies with own and with another z. `ranked` counts
    logits by bin.
    """

    def __init__(self, device: Any) -> None:
        self.numbers = torch.zeros(4, dtype=torch.float64, device=device)
        self.ranked = torch.zeros(2, BINS, dtype=torch.float64, device=device)

    def add(self, own: Tensor, other: Tensor, replaced: Tensor) -> None:
        """Add some words: their logits with own and with another z, and whether they were replaced; [T] each."""
        truth = replaced.float()
        losses = [F.binary_cross_entropy_with_logits(logits, truth, reduction="none") for logits in (own, other)]
        self.numbers += torch.stack([torch.ones_like(truth), truth, *losses]).double().sum(1)
        bins = ((own.clamp(-LARGEST_LOGIT, LARGEST_LOGIT) / LARGEST_LOGIT + 1) / 2 * (BINS - 1)).round().long()
        ones = torch.ones_like(bins, dtype=torch.float64)
        self.ranked.view(-1).index_add_(0, bins + BINS * replaced.long(), ones)

    def of_all_ranks(self) -> tuple[list[float], Tensor]:
        """Numbers and ranked logits, summed over all ranks."""
        whole = all_sum(torch.cat([self.numbers, self.ranked.view(-1)]))
        return whole[:4].tolist(), whole[4:].view(2, BINS)


@torch.no_grad()
def measure_detection(
    sentences: Sequence[str],
    model: DiffCSENetworks,
    generator: Generator,
    tokenizers: Tokenizers,
    recipe: Recipe,
    device: Any,
    enough: int,
    tick: Callable[[], None] = lambda: None,
) -> dict[str, float | None]:
    """Measure replaced-token detection over words, without dropout. Special tokens and padding do not count.

    The sentences are edited again and again, with new corruption, until `enough` words were replaced. Called on every
    rank, and all ranks make the same number of passes. If there are more ranks than sentences, several ranks have the
    same sentence and corrupt it differently. "Another sentence's z" is the z of the sentence before.

    Returns:
        dev_rtd_auroc: how often a replaced word has a larger logit than a kept one, 0.5 by chance.
        dev_rtd_skill: 1 - cross-entropy / entropy of the share of replaced words; 0 means no better than that share.
        dev_rtd_z_gain: cross-entropy with another sentence's z minus cross-entropy with its own, nats per word.
        dev_rtd_replaced: number of replaced words.
        A value is None if there was nothing to measure it by.
    """
    mine = _own_sentences(sentences)
    streams = [truncated_ids(tokenizer, mine, recipe.data.max_length) for tokenizer in tokenizers.streams]
    pieces = torch.arange(len(mine)).tensor_split(-(-len(mine) // SENTENCES))  # each has at least two sentences
    special = torch.tensor(special_ids(tokenizers.discriminator), device=device)
    was_training, sums = model.training, _Sums(device)
    model.eval()
    with torch.random.fork_rng([device] if torch.device(device).type == "cuda" else []):
        torch.manual_seed(0)
        for number in range(20 * len(pieces)):  # new corruption each time around
            tick()
            repetition, index = divmod(number, len(pieces))
            rows = [[tokens[place] for place in pieces[index].tolist()] for tokens in streams]
            first_row = (repetition * world_size() + rank()) * len(mine) + int(pieces[index][0])
            views, ratio = [[tokens, tokens] for tokens in rows], recipe.objective.masking_ratio
            chunk = collate(views, tokenizers, ratio, seed=0, first_row=first_row).to(device)
            _judge(chunk, model, generator, special, sums)
            if float(all_sum(sums.numbers)[1]) >= enough:
                break
    model.train(was_training)
    return _measures(*sums.of_all_ranks())


def _own_sentences(sentences: Sequence[str]) -> list[str]:
    """This rank's sentences: at least two, because each is also judged with the z of another."""
    each = max(2, len(sentences) // world_size())
    return [sentences[(rank() + turn * world_size()) % len(sentences)] for turn in range(each)]


def _judge(chunk: Chunk, model: DiffCSENetworks, generator: Generator, special: Tensor, sums: _Sums) -> None:
    z, edited = model.project(model.encode(chunk)), generator.edit(chunk)
    own, other = (model.logits(chunk, edited, given) for given in (z, z.roll(chunk.views, 0)))
    original = chunk.original_ids.flatten(0, 1)
    words = chunk.original_mask.flatten(0, 1).bool() & ~torch.isin(original, special)
    sums.add(own[words], other[words], (edited.flatten(0, 1) != original)[words])


def _measures(numbers: list[float], ranked: Tensor) -> dict[str, float | None]:
    words, replaced, own, other = numbers
    found: dict[str, float | None] = dict.fromkeys(("dev_rtd_auroc", "dev_rtd_skill", "dev_rtd_z_gain"))
    if words:
        found["dev_rtd_z_gain"] = (other - own) / words
    if 0 < replaced < words:
        kept_below = ranked[0].cumsum(0) - ranked[0] / 2  # ties count half
        found["dev_rtd_auroc"] = float((ranked[1] * kept_below).sum() / replaced / (words - replaced))
        share = replaced / words
        entropy = -share * math.log(share) - (1 - share) * math.log(1 - share)
        found["dev_rtd_skill"] = 1 - own / words / entropy
    return {**found, "dev_rtd_replaced": replaced}


def in_words(measures: dict[str, Any]) -> str:
    """Whether the discriminator used z, as text for the result table."""
    gain = measures.get("dev_rtd_z_gain")
    if gain is None:
        return "not measured"
    numbers = f"its loss with another sentence's z is {gain:+.4f} nats per word"
    return f"yes: {numbers}" if gain >= USES_Z else f"no: {numbers}, less than {USES_Z}"
