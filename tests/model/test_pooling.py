"""Pooling on a case worked by hand: two tokens of padding on the right of the first row, none in the second."""

from __future__ import annotations

from types import SimpleNamespace
from typing import get_args

import pytest
import torch

from diffcse_scale.model.pooling import POOLINGS, pool
from diffcse_scale.recipe import Pooling

LAST = torch.tensor([[[1.0], [2.0], [9.0], [9.0]], [[1.0], [2.0], [3.0], [6.0]]])
FIRST = torch.tensor([[[3.0], [4.0], [9.0], [9.0]], [[1.0], [2.0], [3.0], [2.0]]])
MASK = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
OUTPUTS = SimpleNamespace(last_hidden_state=LAST, hidden_states=[FIRST, LAST + 100, LAST])


@pytest.mark.parametrize(
    ("how", "expected"),
    [("cls", [1.0, 1.0]), ("mean", [1.5, 3.0]), ("last", [2.0, 6.0]), ("first_last_mean", [2.5, 2.5])],
)
def test_pooling_sees_only_real_tokens(how, expected):
    assert pool(OUTPUTS, MASK, how).flatten().tolist() == expected


def test_last_token_with_padding_on_the_left():
    outputs = SimpleNamespace(last_hidden_state=LAST)
    assert pool(outputs, torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]]), "last").flatten().tolist() == [9.0, 6.0]


def test_unknown_pooling_is_refused():
    with pytest.raises(ValueError, match="pooling must be"):
        pool(OUTPUTS, MASK, "median")


def test_the_recipe_offers_the_poolings_of_the_table():
    assert get_args(Pooling) == tuple(POOLINGS)
