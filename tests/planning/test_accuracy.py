"""The plan against real training: peak anonymous memory of `deepspeed --num_gpus 2 train.py`, within 10%.

Cases, tolerance and the way of measuring are those of `studies/plan_accuracy.py`; docs/results/plan.md has all of
them. Here is the chunked one.
"""

from __future__ import annotations

import pytest

from studies.plan_accuracy import CASES, TOLERANCE, compare


@pytest.mark.slow
def test_a_chunked_step_at_zero_2_takes_what_was_planned():
    name = "bert, ZeRO-2, chunked"
    row = compare(name, CASES[name])
    assert abs(row["error"]) <= TOLERANCE, row
