"""Axes, ticks and lines: pure functions of numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffcse_scale.report.charts import area, axis, path, steps_axis, thinned, tick_label

numbers = st.floats(-1e6, 1e6, allow_nan=False).filter(lambda value: value == 0 or abs(value) > 1e-6)


@given(st.lists(numbers, min_size=1, max_size=20))
def test_an_axis_has_room_for_every_value_and_ticks_at_equal_distances(values):
    x = axis(values, 0, 100)
    assert all(-1e-6 <= x.place(value) <= 100 + 1e-6 for value in values)
    gaps = [after - before for before, after in zip(x.ticks[:-1], x.ticks[1:], strict=True)]
    assert 2 <= len(x.ticks) <= 8
    assert gaps == pytest.approx([gaps[0]] * len(gaps), rel=1e-6)


def test_round_numbers_are_at_the_ticks():
    assert axis([0.03, 0.97], 0, 1).ticks == (0, 0.25, 0.5, 0.75, 1)
    assert axis([41.2, 58.9], 0, 1).ticks == (40, 45, 50, 55, 60)
    assert axis([7, 7], 0, 1).low < 7 < axis([7, 7], 0, 1).high


def test_a_logarithmic_axis_gives_equal_ratios_equal_distances():
    y = axis([0.02, 3], 0, 300, log=True)
    assert y.ticks == pytest.approx((0.01, 0.1, 1, 10))
    assert [y.place(tick) for tick in y.ticks] == [0, 100, 200, 300]


def test_the_axis_of_steps_ends_at_the_last_step():
    assert steps_axis(130, 0, 130).place(130) == 130 and steps_axis(130, 0, 130).ticks == (0, 50, 100)
    assert steps_axis(0, 0, 10).place(0) == 0


@pytest.mark.parametrize(
    ("ticks", "percent", "labels"),
    [
        ((0, 0.5, 1), False, ["0", "0.5", "1.0"]),
        ((0.225, 0.23), True, ["22.5%", "23.0%"]),
        ((0, 1e-4, 2e-4), False, ["0", "1e\u22124", "2e\u22124"]),
        ((0, 10_000, 20_000), False, ["0", "10k", "20k"]),
        ((-1, 0), False, ["\u22121", "0"]),
    ],
)
def test_ticks_have_as_many_decimals_as_they_need(ticks, percent, labels):
    assert [tick_label(tick, ticks, percent) for tick in ticks] == labels


def test_a_value_that_is_missing_breaks_the_line():
    x, y = axis([0, 10], 0, 10), axis([0, 10], 0, 10)
    assert path([(0, 1.0), (2.5, 2.0), (5, None), (10, 3.0)], x, y) == "M0,1L2.5,2M10,3"


def test_a_histogram_stands_on_its_base():
    assert area([1, 0.5], [0, 5, 10], axis([0, 10], 0, 10), 40, 20) == "M0,40L0,20L5,20L5,30L10,30L10,40Z"


def test_long_lines_keep_their_ends_and_their_spikes():
    steps = np.arange(10_000)
    values = np.sin(steps / 500)
    values[5_003], values[7_001] = 9.0, math.nan
    kept = thinned(steps, values, 100)
    assert len(kept) <= 102 and kept[0] == (0, values[0]) and kept[-1] == (9_999, values[-1])
    assert (5_003, 9.0) in kept and kept == sorted(kept)
    assert thinned(steps[:50], values[:50], 100) == list(enumerate(values[:50]))


def test_a_number_that_is_missing_is_a_gap_of_a_long_line():
    values = np.full(1000, math.nan)
    values[500:] = 1.0
    kept = thinned(np.arange(1000), values, 100)
    assert [value for step, value in kept if step < 500] == [None] * 25
    assert {value for step, value in kept if step >= 500} == {1.0}
