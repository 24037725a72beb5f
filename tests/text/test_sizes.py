"""Sizes that repeat, and which positions of padded rows are computed."""

from __future__ import annotations

import numpy as np
import pytest

from diffcse_scale.text.sizes import computed_positions, repeating_size


def test_a_size_is_at_least_the_count_at_most_an_eighth_more_and_repeats() -> None:
    sizes = {count: repeating_size(count) for count in range(5000)}
    assert all(count <= size <= count * 9 / 8 for count, size in sizes.items())
    assert all(repeating_size(size) == size for size in sizes.values())
    assert len({size for count, size in sizes.items() if 2048 < count <= 4096}) == 8
    assert [sizes[count] for count in (0, 1, 16, 17, 33, 700, 832, 1000)] == [0, 1, 16, 18, 36, 704, 832, 1024]


@pytest.mark.parametrize("lengths", [[5, 31, 32, 7], [32, 32, 32, 32], [32, 32, 32, 31], [3, 3, 3, 3]])
def test_real_tokens_come_first_and_some_padding_stays_out_where_there_is_any(lengths: list[int]) -> None:
    mask = np.arange(32) < np.array(lengths)[:, None]
    positions = computed_positions(mask)
    assert np.all(np.diff(positions) > 0) and set(np.flatnonzero(mask)) <= set(positions)
    assert len(positions) == min(repeating_size(sum(lengths)), mask.size - (not mask.all()))
    assert (len(positions) == mask.size) == mask.all()
