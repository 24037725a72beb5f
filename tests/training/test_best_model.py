"""Which evaluation counts as the best."""

from __future__ import annotations

from math import nan

import pytest

from diffcse_scale.training.best_model import improves


@pytest.mark.parametrize(
    ("score", "best", "expected"),
    [
        (50.0, None, True),
        (50.0, 49.0, True),
        (50.0, 50.0, False),
        (nan, 50.0, False),
        (nan, None, True),
        (1.0, nan, True),
    ],
)
def test_only_a_higher_score_replaces_the_best(score, best, expected):
    assert improves(score, best) is expected
