"""Stateless random numbers: the n-th number of a seed, for any n, in any order, on any device.

The generator is SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA
2014). Its n-th output is a hash of n. The seed is hashed first, so neighbouring seeds give unrelated sequences.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor

GOLDEN_GAMMA = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_SHIFTS = (30, 27, 31)
WORD = 1 << 64

Words = TypeVar("Words", bound=Any)


def counter_uniform(seed: int, counters: Tensor) -> Tensor:
    """Return one uniform number in [0, 1) for each counter, the same on every platform.

    Source: SplitMix64 (Steele, Lea and Flood, OOPSLA 2014). Its n-th number is a hash of n.

    Args:
        seed: any integer; taken modulo 2**64.
        counters: int64, any shape. Equal counters give equal numbers.

    Returns:
        float64, with the shape and device of `counters`: multiples of 2**-53, which float64 represents exactly.

    Raises:
        ValueError: `counters` is not int64.

    Example:
        >>> import torch
        >>> from diffcse_kernels import counter_uniform
        >>> numbers = counter_uniform(7, torch.tensor([0, 1, 2]))
        >>> numbers.dtype, bool(((0 <= numbers) & (numbers < 1)).all())
        (torch.float64, True)
        >>> torch.equal(counter_uniform(7, torch.tensor([2, 0])), numbers[[2, 0]])  # in any order, of any call
        True
    """
    if counters.dtype != torch.int64:
        raise ValueError(f"counters must be int64, not {counters.dtype}")
    key = _mix_integer((seed + GOLDEN_GAMMA) % WORD)
    bits = mix(counters * _signed(GOLDEN_GAMMA) + _signed(key))
    return _shift_right(bits, 11).to(torch.float64) * 2.0**-53


def signed_seed(seed: int) -> int:
    """The equivalent seed in [-2**63, 2**63); PyTorch operators accept no integer outside this range."""
    return _signed(seed % WORD)


def mix(words: Words) -> Words:
    """SplitMix64's finaliser, a permutation of all 64-bit words.

    Args:
        words: an int64 tensor or numpy array. Its products wrap around as unsigned products do.
    """
    for shift, multiplier in zip(_SHIFTS, _MULTIPLIERS, strict=False):
        words = (words ^ _shift_right(words, shift)) * _signed(multiplier)
    return words ^ _shift_right(words, _SHIFTS[-1])


def _mix_integer(word: int) -> int:
    """`mix` for one Python integer in [0, 2**64)."""
    for shift, multiplier in zip(_SHIFTS, _MULTIPLIERS, strict=False):
        word = (word ^ (word >> shift)) * multiplier % WORD
    return word ^ (word >> _SHIFTS[-1])


def _shift_right(words: Words, count: int) -> Words:
    """Logical shift to the right. The built-in shift of int64 is arithmetic: it copies the sign bit."""
    return (words >> count) & ((1 << (64 - count)) - 1)


def _signed(word: int) -> int:
    """Reinterpret an unsigned 64-bit word as int64."""
    return word - WORD if word >= WORD // 2 else word
