"""The order of an epoch is a permutation, different for every seed and epoch."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffcse_scale.text.order import BLOCK, ROUNDS, epoch_order, permute


@settings(max_examples=200, deadline=None)
@given(n=st.integers(1, 3000), key=st.integers(0, 2**63 - 1))
def test_it_is_a_bijection(n: int, key: int) -> None:
    assert np.array_equal(np.sort(permute(np.arange(n), n, key)), np.arange(n))


@pytest.mark.parametrize("n", [10**6, 10**12 + 1, 2**62])
def test_any_part_is_known_without_the_rest(n: int) -> None:
    positions = np.array([0, 1, n // 2, n - 1, 17])
    whole = permute(positions, n, key=3)
    assert [int(permute(np.array([p]), n, key=3)[0]) for p in positions] == whole.tolist()
    assert len(set(whole.tolist())) == 5
    assert 0 <= whole.min() <= whole.max() < n


def test_blocks_do_not_show() -> None:
    """A Feistel network in Python's own numbers, at positions on both sides of a block's end and far beyond it."""
    n, key = 50_000, 2**63 + 5
    side, word = math.isqrt(n - 1) + 1, 2**64

    def mix(value: int) -> int:
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % word
        value = (value ^ value >> 27) * 0x94D049BB133111EB % word
        return value ^ value >> 31

    def once(value: int) -> int:
        left, right = divmod(value, side)
        for index in range(1, ROUNDS + 1):
            round_key = (key + index * 0x9E3779B97F4A7C15) % word
            left, right = right, (left + mix(mix((right + round_key) % word) ^ round_key) % side) % side
        found = left * side + right
        return found if found < n else once(found)

    whole = permute(np.arange(n), n, key)
    for position in (0, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, n - 1):
        assert int(whole[position]) == once(position)


def test_the_order_of_a_seed_stays_what_it_was() -> None:
    """A run that an earlier version began is resumed in its own order."""
    assert permute(np.arange(7), 7, key=3).tolist() == [1, 4, 0, 2, 5, 6, 3]
    assert permute(np.array([0, 1, 2**61]), 2**62, key=2**64 - 1).tolist() == [
        3284802877095488698,
        3960809524202289583,
        2048295811268431543,
    ]


def test_seeds_and_epochs_have_orders_of_their_own() -> None:
    orders = [epoch_order(np.arange(1000), 1000, seed, epoch) for seed in range(3) for epoch in range(3)]
    for i, first in enumerate(orders):
        for second in orders[:i]:
            # two independent permutations agree in 1 place on average (Poisson)
            assert (first == second).sum() < 10


@pytest.mark.parametrize("n", [5, 7, 30])
def test_every_sentence_is_equally_likely_at_every_position(n: int) -> None:
    epochs = 1000
    counts = np.zeros((n, n))
    for epoch in range(epochs):
        counts[np.arange(n), epoch_order(np.arange(n), n, seed=1, epoch=epoch)] += 1
    # chi-square of an n x n table with fixed margins: (n - 1)^2 degrees of freedom
    statistic, freedom = ((counts - epochs / n) ** 2 / (epochs / n)).sum(), (n - 1) ** 2
    assert abs(statistic - freedom) < 5 * np.sqrt(2 * freedom)


def test_neighbours_do_not_stay_neighbours() -> None:
    order = epoch_order(np.arange(100_000), 100_000, seed=0, epoch=0)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(order, np.arange(100_000))[0, 1]) < 0.02
