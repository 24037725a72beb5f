from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffcse_kernels.reference import blocks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _LiveMemory(TorchDispatchMode):
    """Largest number of bytes held at once by the results of operators, in forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[StorageWeakRef, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.live[StorageWeakRef(storage)] = storage.nbytes()
        self.live = {storage: size for storage, size in self.live.items() if not storage.expired()}
        self.peak = max(self.peak, sum(self.live.values()))
        return result


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
        with _LiveMemory() as memory:
            function()
        return memory.peak

    return measure


@pytest.fixture
def block_bytes(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the byte budget of a block, so that small inputs take many blocks."""

    def set_budget(size: int) -> None:
        monkeypatch.setattr(blocks, "BLOCK_BYTES", size)

    return set_budget
