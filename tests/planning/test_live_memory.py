"""Bytes alive are those of storages, counted once, from their making to their end."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from diffcse_scale.planning.live_memory import LiveMemory


def test_storages_are_counted_once_and_until_they_are_freed():
    outside = torch.ones(10)
    with LiveMemory() as memory:
        kept = torch.zeros(100)  # 400 bytes
        view = kept.view(10, 10)[2:]
        kept.add_(1)
        outside.mul_(2)
        assert memory.live == 400
        temporary = kept + 1
        assert memory.live == 800
        del temporary
        assert (memory.live, memory.peak(), memory.peak()) == (400, 800, 400)
        del kept
        assert memory.live == 400  # the view holds it
        del view
        assert memory.live == 0


def test_what_autograd_saves_lives_until_backward():
    with FakeTensorMode(), LiveMemory() as memory:
        x = torch.empty(1000, requires_grad=True)
        y = x.exp().sum()
        assert memory.live == 4000 + 4000 + 4  # x, exp(x) for backward, and the sum
        y.backward()
        del y
        assert memory.live == 4000 + 4000  # x and its gradient
