"""All use of random state. Nothing is saved and restored: each draw is seeded from its purpose (seed, step, chunk).

Seeds derive from (recipe seed, purpose, step, rank). A resumed run therefore draws the same numbers as an
uninterrupted one, and any part of a step can be replayed. Corruption and sampling use a counter-based number for each
token (`diffcse_kernels.counter_uniform`), so they do not depend on ranks either.
"""

from __future__ import annotations

import hashlib
import random

import numpy as np


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed derived from `seed` and the words and numbers that describe its purpose."""
    text = "/".join([str(seed), *map(str, purpose)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def seed_initial_numbers(seed: int, part: str) -> None:
    """Call this before `part` of a model is made, so that its initial numbers depend only on `seed` and its name.

    Runs with one seed then start with equal parts, whatever was drawn before, and can be compared seed by seed.
    """
    seed_everything(derive_seed(seed, "initial numbers", part))


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch (all devices)."""
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
