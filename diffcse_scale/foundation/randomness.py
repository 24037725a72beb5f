"""All use of random state. Nothing is saved and restored: every draw is seeded from what it is for (seed, step, chunk).

A seed derived from (recipe seed, what for, step, rank) makes a resumed run draw what an uninterrupted one would
have drawn, and lets any part of a step be replayed. Corruption and sampling go further: they use one
counter-based number for each token (`diffcse_kernels.counter_uniform`), so they do not depend on ranks either.
"""

from __future__ import annotations

import hashlib
import random

import numpy as np


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed that is a function of `seed` and of the words and numbers that say what it is for."""
    text = "/".join([str(seed), *map(str, purpose)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def seed_initial_numbers(seed: int, part: str) -> None:
    """Call it before `part` of a model is made: its initial numbers are then a function of `seed` and its name alone.

    Whatever else a recipe has drawn before, runs of one seed begin with equal parts and can be compared seed by seed.
    """
    seed_everything(derive_seed(seed, "initial numbers", part))


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch (all devices)."""
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
