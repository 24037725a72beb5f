"""Measures how many bytes of tensors are alive while a piece of code runs."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary


class LiveMemory(TorchDispatchMode):
    """Inside, counts each storage that operations allocate, once, from allocation to release.

    Views share their base's storage and cost nothing. Tensors from outside are not counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0  # bytes alive now
        self._peak = 0
        self._known = WeakIdKeyDictionary()

    def peak(self) -> int:
        """The peak of bytes alive since the last call."""
        peak, self._peak = self._peak, self.live
        return peak

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        before = [leaf.untyped_storage() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                if storage not in self._known and not any(storage is other for other in before):
                    size = storage.nbytes()
                    self._known[storage] = size
                    self._change(size)
                    weakref.finalize(storage, self._change, -size)
        return result

    def _change(self, by: int) -> None:
        self.live += by
        self._peak = max(self._peak, self.live)
