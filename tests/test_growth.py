"""What a command holds does not grow by thousands of bytes a row. docs/results/memory_per_row.md has the numbers."""

from __future__ import annotations

import pytest

from tests.support.growth import COMMANDS

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "few", "many", "most"),
    [
        ("pretrain-generator", 20_000, 80_000, 700),
        ("the order of a process that edits", 1_000_000, 4_000_000, 12),
        ("report", 20_000, 80_000, 1000),
        ("a resume", 20_000, 80_000, 300),
        ("DiffCSE.fit", 20_000, 80_000, 250),
    ],
)
def test_memory_grows_by_few_bytes_a_row(name: str, few: int, many: int, most: int):
    assert COMMANDS[name].growth(few, many) < most
