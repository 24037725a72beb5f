from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffcse_kernels.reference import blocks

from tests.support.kernels.live_memory import LiveMemory


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where there is a GPU, the tests of the Triton kernels run on it: `pytest -m gpu` means them too."""
    if torch.cuda.is_available():
        for item in items:
            if item.path.name.endswith("_triton.py"):
                item.add_marker("gpu")


@pytest.fixture
def peak_memory() -> Callable[[Callable[[], Any]], int]:
    """Peak bytes of a call, its inputs included where it makes views of them."""

    def measure(function: Callable[[], Any]) -> int:
        with LiveMemory() as memory:
            function()
        return memory.peak

    return measure


@pytest.fixture
def block_bytes(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the byte budget of a block, so that small inputs take many blocks."""

    def set_budget(size: int) -> None:
        monkeypatch.setattr(blocks, "BLOCK_BYTES", size)

    return set_budget
