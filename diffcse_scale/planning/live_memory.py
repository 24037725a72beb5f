"""How many bytes of tensors are alive, at every moment of a piece of code."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary


class LiveMemory(TorchDispatchMode):
    """Inside, counts the storages of all tensors made by operations, each once, from its making to its end.

    Views share their base's storage and cost nothing; tensors from outside are not counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self._peak = 0
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        before = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and id(storage := leaf.untyped_storage()) not in before:
                self._add(storage)
        return result

    def peak(self) -> int:
        """The most bytes alive since this was last asked."""
        peak, self._peak = self._peak, self.live
        return peak

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        size = storage.nbytes()
        self._known[storage] = size
        self.live += size
        self._peak = max(self._peak, self.live)
        weakref.finalize(storage, self._remove, size)

    def _remove(self, size: int) -> None:
        self.live -= size
