"""Masking follows the official collator's rates and depends on nothing but a row's place in the run."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.text.corruption import Corruption

ROWS, LENGTH = 4000, 24
CORRUPTION = Corruption(masking_ratio=0.30, mask_id=4, vocabulary=205, special_ids=(0, 1, 2, 3, 4), seed=5)


def rows(count: int = ROWS, length: int = LENGTH) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[CLS] words [SEP] padding, of different lengths, some words unknown."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, length + 1, (count, 1), generator=generator)
    places = torch.arange(length)
    ids = torch.randint(5, 205, (count, length), generator=generator)
    ids[torch.rand(ids.shape, generator=generator) < 0.05] = 1
    ids[:, 0] = 2
    ids = torch.where(places == lengths - 1, 3, ids)
    mask = (places < lengths).long()
    return ids * mask, mask, torch.arange(count)


def assert_binomial(successes: int, trials: int, probability: float) -> None:
    deviation = math.sqrt(trials * probability * (1 - probability))
    assert abs(successes - trials * probability) < 4 * deviation, (successes / trials, probability)


def test_rates_are_those_of_the_official_collator() -> None:
    ids, mask, row_ids = rows()
    corrupted, selected = CORRUPTION(ids, mask, row_ids)
    ordinary = int((ids >= 5).sum())
    before, after = ids.flatten()[selected], corrupted.flatten()[selected]
    assert_binomial(len(selected), ordinary, 0.30)
    assert_binomial(int((after == 4).sum()), len(selected), 0.8 + 0.1 / 205)
    assert_binomial(int((after == before).sum()), len(selected), 0.1 + 0.1 / 205)
    random = after[(after != before) & (after != 4)]
    # random tokens are spread over the whole vocabulary, special ones included
    assert_binomial(int((random < 5).sum()), len(random), 4 / 204)
    assert_binomial(int((random >= 105).sum()), len(random), 100 / 204)


def test_the_ratio_is_the_recipes() -> None:
    ids, mask, row_ids = rows()
    ordinary = int((ids >= 5).sum())
    selected = {
        ratio: len(Corruption(ratio, 4, 205, (0, 1, 2, 3, 4), 5)(ids, mask, row_ids)[1]) for ratio in (0, 0.15, 1)
    }
    assert (selected[0], selected[1]) == (0, ordinary)
    assert_binomial(selected[0.15], ordinary, 0.15)


def test_special_tokens_and_padding_are_never_selected() -> None:
    ids, mask, row_ids = rows()
    # the padding id is no special token here: the mask alone must protect it
    corruption = Corruption(1.0, 4, 205, (1, 2, 3, 4), 5)
    corrupted, selected = corruption(ids, mask, row_ids)
    assert mask.flatten()[selected].all()
    assert (ids.flatten()[selected] >= 5).all()
    untouched = torch.ones(ids.numel(), dtype=torch.bool)
    untouched[selected] = False
    assert torch.equal(corrupted.flatten()[untouched], ids.flatten()[untouched])


def test_a_row_is_corrupted_alike_in_any_company_and_with_any_padding() -> None:
    ids, mask, row_ids = rows(count=60)
    whole, selected = CORRUPTION(ids, mask, row_ids)
    chosen = torch.zeros(ids.numel(), dtype=torch.bool)
    chosen[selected] = True
    some = torch.tensor([50, 7, 8, 31])
    length = int(mask[some].sum(1).max())
    alone, alone_selected = CORRUPTION(ids[some, :length], mask[some, :length], row_ids[some])
    assert torch.equal(alone, whole[some, :length])
    expected = chosen.view_as(ids)[some, :length].flatten().nonzero().flatten()
    assert torch.equal(alone_selected, expected)


def test_rows_and_seeds_have_masks_of_their_own() -> None:
    ids, mask = torch.full((3, 2, 400), 9), torch.ones(3, 2, 400, dtype=torch.long)
    row_ids = torch.arange(6).view(3, 2)
    outcomes = [CORRUPTION(ids, mask, row_ids)[0].view(6, 400)]
    outcomes.append(Corruption(0.30, 4, 205, (0, 1, 2, 3, 4), seed=6)(ids, mask, row_ids)[0].view(6, 400))
    assert len(torch.cat(outcomes).unique(dim=0)) == 12


def test_it_is_made_for_the_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    corruption = Corruption.of(tokenizer, 0.3, seed=1)
    assert corruption == Corruption(0.3, 4, 205, (0, 1, 2, 3, 4), 1)


def test_what_stands_around_every_sentence_is_special_without_a_name_too(tokenizer: PreTrainedTokenizerFast) -> None:
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]"}
    unnamed = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, **names)
    assert Corruption.of(unnamed, 0.3, seed=1) == Corruption.of(tokenizer, 0.3, seed=1)


def test_a_tokenizer_without_a_mask_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    decoder = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(InputError, match="no mask token"):
        Corruption.of(decoder, 0.3, seed=1)
