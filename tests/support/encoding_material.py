"""Sentences of every length, and what an encoded folder holds."""

from __future__ import annotations

import random

from tests.support.tiny_models import WORDS


def sentence(index: int) -> str:
    """One to thirty words, the same for the same index."""
    draw = random.Random(index)
    return " ".join(draw.choices(WORDS, k=draw.randint(1, 30)))
