"""A short soak: what ends a run in practice, then its end; `python -m tests.soak` goes on for longer."""

from __future__ import annotations

import pytest

from tests.soak.bench import Bench
from tests.soak.rounds import soak

pytestmark = pytest.mark.slow
KINDS = ["rank killed while it writes", "TERM to a rank", "node launcher killed", "taken over while frozen"]


def test_a_run_that_is_ended_again_and_again_ends_as_the_uninterrupted_one(tmp_path):
    rows = list(soak(Bench(tmp_path, seed=0), KINDS))
    assert [row.violations for row in rows] == [[]] * len(rows), "\n".join(map(str, rows))
    assert rows[-1].finished
