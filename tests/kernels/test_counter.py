from __future__ import annotations

import pytest
import torch
from diffcse_kernels import counter_uniform
from scipy.stats import kstest

WORD = 2**64


def splitmix64(state: int) -> tuple[int, int]:
    """The published generator, one step: next state and output (Python integers)."""
    state = (state + 0x9E3779B97F4A7C15) % WORD
    z = state
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % WORD
    return state, z ^ (z >> 31)


def test_the_independent_generator_gives_the_published_outputs() -> None:
    state, outputs = 1234567, []
    for _ in range(3):
        state, output = splitmix64(state)
        outputs.append(output)
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize("seed", [0, 1, 42, -1, 2**63, 2**64 + 5, 0x9E3779B97F4A7C15])
def test_equals_splitmix64_in_python_integers(seed: int) -> None:
    counters = [0, 1, 2, 1000, 2**31, 2**53 + 1, 2**63 - 1, -1, -(2**63)]
    _, key = splitmix64(seed % WORD)
    expected = []
    for counter in counters:
        # the generator adds its constant before it mixes, so one step back
        _, word = splitmix64((key + (counter - 1) * 0x9E3779B97F4A7C15) % WORD)
        expected.append((word >> 11) / 2**53)
    result = counter_uniform(seed, torch.tensor(counters))
    assert result.dtype == torch.float64
    assert result.tolist() == expected


def test_keeps_the_shape_and_does_not_depend_on_the_grouping() -> None:
    counters = torch.arange(24).reshape(2, 3, 4)
    whole = counter_uniform(5, counters)
    assert whole.shape == (2, 3, 4)
    assert torch.equal(whole[1, :, 1:3], counter_uniform(5, counters[1, :, 1:3]))


@pytest.mark.parametrize("stride", [1, 2, 32, 2**20, 2**32])
def test_is_uniform_and_neighbouring_counters_and_seeds_are_unrelated(stride: int) -> None:
    counters = torch.arange(50_000) * stride
    values = counter_uniform(7, counters)
    assert values.min() >= 0
    assert values.max() < 1
    assert kstest(values.numpy(), "uniform").pvalue > 1e-3
    neighbours = (values, counter_uniform(7, counters + stride), counter_uniform(8, counters))
    correlation = torch.corrcoef(torch.stack(neighbours))
    # the standard deviation of a correlation of unrelated numbers is 50000 ** -0.5 = 0.0045
    assert (correlation - torch.eye(3)).abs().max() < 0.02


def test_refuses_counters_that_are_not_int64() -> None:
    with pytest.raises(ValueError, match="must be int64"):
        counter_uniform(0, torch.zeros(3))
