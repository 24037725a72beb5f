"""Whatever a user gives: exit 0 and right, or exit 2 and one sentence; nothing overwritten, within time and memory.

A few inputs of each surface here; `make fuzz` goes on for longer.
"""

from __future__ import annotations

import pytest

from tests.fuzz.contract import Worker
from tests.fuzz.drawing import fuzz
from tests.fuzz.processes import fuzz_processes
from tests.fuzz.surfaces import SURFACES

FEW = {"recipe": 20, "overrides": 20, "deepspeed": 30}


@pytest.fixture(scope="module")
def worker():
    one = Worker()
    yield one
    one.close()


each_surface = pytest.mark.parametrize("name", SURFACES)


@each_surface
def test_the_contract_is_kept(name, worker):
    tally = fuzz(SURFACES[name], FEW.get(name, 5), 1, worker)
    assert not tally.breaches, str(tally)


@pytest.mark.slow
@each_surface
def test_the_contract_is_kept_by_hundreds_of_inputs(name, worker):
    tally = fuzz(SURFACES[name], 300, 2, worker)
    assert not tally.breaches, str(tally)
    # neither all good nor all bad: both halves of the contract are met
    assert 0 < tally.accepted < tally.inputs


@pytest.mark.slow
@each_surface
def test_the_contract_is_kept_by_processes(name):
    tally = fuzz_processes(SURFACES[name], 3, 3)
    assert not tally.breaches, str(tally)
