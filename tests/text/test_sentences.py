"""The sentences of masked-LM training: the tokenizer's, split as datasets and ordered as transformers do it."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
import torch
from transformers.trainer_pt_utils import get_length_grouped_indices

from diffcse_scale.foundation.randomness import derive_seed
from diffcse_scale.text.sentences import GroupedByLength, Sentences
from tests.support.text_material import sentence


@pytest.fixture(params=[1, 2, 3])
def sentences(request, corpora, tokenizer) -> Sentences:
    return Sentences(corpora[request.param], tokenizer)


def test_they_are_what_the_tokenizer_makes_of_one_column_after_another(sentences, tokenizer):
    text = [sentence(number) for number in range(101 * sentences.tokens.columns)]
    expected = tokenizer(text, return_special_tokens_mask=True)
    assert [item["input_ids"] for item in sentences] == expected["input_ids"]
    assert [item["special_tokens_mask"] for item in sentences] == expected["special_tokens_mask"]
    assert sentences.lengths().tolist() == [len(ids) for ids in expected["input_ids"]]


def test_the_split_is_that_of_datasets(sentences):
    train, held_out = sentences.split(17, seed=5)
    numbers = datasets.Dataset.from_dict({"number": range(len(sentences))}).train_test_split(17, seed=5)
    assert train.numbers.tolist() == numbers["train"]["number"][:]
    assert held_out.numbers.tolist() == numbers["test"]["number"][:]
    assert [len(item["input_ids"]) for item in train] == train.lengths().tolist()


@pytest.mark.parametrize(("count", "batch_size"), [(1000, 4), (1003, 7), (30, 16), (3, 8)])
def test_the_order_is_that_of_transformers(count, batch_size):
    lengths = np.random.default_rng(count).integers(3, 40, count, dtype=np.int32)
    sampler = GroupedByLength(batch_size, lengths, seed=1)
    orders = []
    for epoch in (0, 1, 0):
        draw = torch.Generator().manual_seed(derive_seed(1, "order", epoch))
        expected = get_length_grouped_indices(lengths.tolist(), batch_size, generator=draw)
        sampler.epoch = epoch
        orders.append(list(sampler))
        assert len(sampler) == count and orders[-1] == expected
    assert orders[0] == orders[2] and (orders[0] != orders[1] or count < 10)
