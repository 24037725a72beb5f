from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffcse_kernels import counter_uniform, reference, sample_tokens
from scipy.stats import chisquare
from torch import Tensor

DRAWS = 20_000


def random_head(vocabulary: int, width: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(vocabulary)
    embedding = torch.randn(vocabulary, width, generator=generator) / width**0.5
    return embedding.to(dtype), torch.randn(vocabulary, generator=generator).to(dtype)


def random_states(rows: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("temperature", [1.0, 0.4, 3.0])
@pytest.mark.parametrize("restricted", [False, True])
def test_draws_follow_the_softmax(restricted: bool, temperature: float, dtype: torch.dtype) -> None:
    embedding, bias = random_head(30, 8, dtype)
    state = random_states(1, 8).to(dtype)
    forbidden = torch.arange(30) % 3 == 0 if restricted else None
    ids = sample_tokens(
        state.expand(DRAWS, 8),
        embedding,
        bias,
        torch.arange(DRAWS),
        seed=1,
        temperature=temperature,
        forbidden=forbidden,
    )
    logits = (state.double() @ embedding.double().T + bias.double())[0] / temperature
    if forbidden is not None:
        logits[forbidden] = -torch.inf
        assert not forbidden[ids].any()
    expected = logits.softmax(0) * DRAWS
    observed = torch.bincount(ids, minlength=30).double()
    usual = expected > 5  # the chi-square approximation needs counts; the rest makes one class
    observed = torch.cat([observed[usual], observed[~usual].sum()[None]])
    expected = torch.cat([expected[usual], expected[~usual].sum()[None]])
    observed, expected = observed[expected > 0], expected[expected > 0]
    assert chisquare(observed.numpy(), expected.numpy()).pvalue > 1e-3


def test_inverts_the_cumulative_distribution_at_the_uniform_number_of_the_position() -> None:
    probabilities = torch.tensor([0.5, 0.0, 0.25, 0.25])
    positions = torch.arange(1000) * 7919
    ids = sample_tokens(torch.zeros(1000, 2), torch.zeros(4, 2), probabilities.log(), positions, seed=3)
    uniform = counter_uniform(3, positions)
    expected = torch.where(uniform < 0.5, 0, torch.where(uniform < 0.75, 2, 3))
    assert torch.equal(ids, expected)


@pytest.mark.parametrize("temperature", [1.0, 0.0])
@pytest.mark.parametrize("shape", [(301, 1000, 32), (150, 8192, 96)], ids=str)
def test_a_row_gets_the_same_token_however_rows_are_grouped(shape: tuple[int, int, int], temperature: float) -> None:
    rows, vocabulary, width = shape
    embedding, bias = random_head(vocabulary, width)
    hidden, positions = random_states(rows, width), torch.arange(rows) * 1013 + 5

    def sample(index: Tensor) -> Tensor:
        return sample_tokens(hidden[index], embedding, bias, positions[index], seed=9, temperature=temperature)

    everything = sample(torch.arange(rows))
    for sizes in ([1] * 20, [2, 3, 64, 65], [rows // 2, rows - rows // 2], [rows - 1, 1]):
        groups = torch.arange(rows)[: sum(sizes)].split(sizes)
        assert torch.equal(torch.cat([sample(group) for group in groups]), everything[: sum(sizes)])
    shuffled = torch.randperm(rows, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sample(shuffled), everything[shuffled])


def test_logits_equal_but_for_rounding_give_the_same_token_however_rows_are_grouped() -> None:
    """Every logit sums the same terms in another order, so that rounding alone decides the argmax."""
    generator = torch.Generator().manual_seed(0)
    terms = torch.randn(96, generator=generator)
    embedding = torch.stack([terms[torch.randperm(96, generator=generator)] for _ in range(500)])
    hidden = torch.ones(70, 96)

    def argmax(rows: int) -> Tensor:
        return sample_tokens(hidden[:rows], embedding, None, torch.arange(rows), seed=0, temperature=0.0)

    everything = argmax(70)
    assert everything.unique().numel() == 1
    for rows in (1, 2, 3, 5, 63, 64, 65):
        assert torch.equal(argmax(rows), everything[:rows])


def test_a_uniform_number_of_zero_draws_the_first_allowed_token() -> None:
    word, constant, seed = 2**64, 0x9E3779B97F4A7C15, 0
    key = 0xE220A8397B1DCDAF  # first output of SplitMix64 from state 0
    counter = -key * pow(constant, -1, word) % word  # the one whose word is zero, which stays zero when mixed
    positions = torch.tensor([counter - word if counter >= word // 2 else counter])
    assert counter_uniform(seed, positions) == 0
    forbidden = torch.arange(5) < 2
    ids = sample_tokens(torch.zeros(1, 3), torch.zeros(5, 3), None, positions, seed=seed, forbidden=forbidden)
    assert ids.tolist() == [2]


def test_seed_position_and_state_each_change_the_token() -> None:
    embedding, bias = random_head(500, 8)
    hidden, positions = random_states(200, 8), torch.arange(200)
    ids = sample_tokens(hidden, embedding, bias, positions, seed=0)
    assert torch.equal(ids, sample_tokens(hidden, embedding, bias, positions, seed=0))
    for other in (
        sample_tokens(hidden, embedding, bias, positions, seed=1),
        sample_tokens(hidden, embedding, bias, positions + 200, seed=0),
        sample_tokens(random_states(200, 8, seed=5), embedding, bias, positions, seed=0),
    ):
        assert (ids != other).float().mean() > 0.9


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_temperature_zero_is_the_most_probable_allowed_token(dtype: torch.dtype) -> None:
    embedding, bias = random_head(97, 12, dtype)
    hidden = random_states(70, 12).to(dtype)
    logits = hidden.double() @ embedding.double().T + bias.double()
    ids = sample_tokens(hidden, embedding, bias, torch.arange(70), seed=0, temperature=0.0)
    assert torch.equal(ids, logits.argmax(1))
    forbidden = torch.zeros(97, dtype=torch.bool)
    forbidden[ids[:10]] = True
    ids = sample_tokens(hidden, embedding, bias, torch.arange(70), seed=0, temperature=0.0, forbidden=forbidden)
    assert torch.equal(ids, logits.masked_fill(forbidden, -torch.inf).argmax(1))


def test_a_small_temperature_and_large_logits_do_not_overflow() -> None:
    embedding, bias = random_head(50, 4)
    hidden = random_states(30, 4) * 1e4
    ids = sample_tokens(hidden, embedding, bias, torch.arange(30), seed=0, temperature=1e-6)
    assert torch.equal(ids, (hidden @ embedding.T + bias).argmax(1))


def test_no_bias_is_a_bias_of_zero() -> None:
    embedding, _ = random_head(50, 4)
    hidden, positions = random_states(30, 4), torch.arange(30)
    ids = sample_tokens(hidden, embedding, None, positions, seed=0)
    assert torch.equal(ids, sample_tokens(hidden, embedding, torch.zeros(50), positions, seed=0))


def test_no_rows_give_no_tokens() -> None:
    embedding, bias = random_head(50, 4)
    assert sample_tokens(torch.zeros(0, 4), embedding, bias, torch.arange(0), seed=0).shape == (0,)


def test_autocast_changes_nothing() -> None:
    embedding, bias = random_head(2000, 32)
    hidden, positions = random_states(300, 32), torch.arange(300)
    expected = sample_tokens(hidden, embedding, bias, positions, seed=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sample_tokens(hidden, embedding, bias, positions, seed=0), expected)


def test_any_integer_is_a_seed_and_counts_modulo_2_to_the_64() -> None:
    embedding, bias = random_head(500, 8)
    hidden, positions = random_states(50, 8), torch.arange(50)
    for seed in (0, -1, 2**63, -(2**63) - 1, 2**80 + 5):
        ids = sample_tokens(hidden, embedding, bias, positions, seed=seed)
        assert torch.equal(ids, sample_tokens(hidden, embedding, bias, positions, seed=seed % 2**64))
        assert torch.equal(ids, reference.sample_tokens(hidden, embedding, bias, positions, seed=seed))


def test_ids_have_no_graph_whatever_the_inputs_require() -> None:
    embedding, bias = (tensor.requires_grad_() for tensor in random_head(50, 8))
    hidden, positions = random_states(30, 8).requires_grad_(), torch.arange(30)
    ids = sample_tokens(hidden, embedding, bias, positions, seed=0)
    assert not ids.requires_grad
    with torch.no_grad():
        assert torch.equal(ids, sample_tokens(hidden, embedding, bias, positions, seed=0))


@pytest.mark.parametrize("options", [{"forbidden": torch.arange(50) < 3}, {"temperature": 0.0}], ids=list)
def test_compiles_without_a_graph_break(options: dict[str, Any]) -> None:
    embedding, bias = random_head(50, 8)
    hidden, positions = random_states(30, 8), torch.arange(30)

    def embedded(seed: int) -> Tensor:
        return embedding[sample_tokens(hidden * 2, embedding, bias, positions, seed=seed, **options)]

    compiled = torch.compile(embedded, fullgraph=True, backend="aot_eager")
    for seed in (0, 1, -2, 2**64 - 2):
        assert torch.equal(compiled(seed), embedded(seed))


@pytest.mark.parametrize("requires_grad", [False, True])
def test_the_operator_is_registered_as_torch_wants_it(requires_grad: bool) -> None:
    embedding, bias = random_head(50, 8)
    hidden = random_states(30, 8).requires_grad_(requires_grad)
    operator = torch.ops.diffcse_kernels.sample_tokens.default
    for optional in ((bias, torch.arange(50) < 3), (None, None)):
        arguments = (hidden, embedding, optional[0], torch.arange(30), 7, 0.5, optional[1], "reference")
        torch.library.opcheck(operator, arguments)


def test_the_logits_of_all_rows_never_exist(
    block_bytes: Callable[[int], None], peak_memory: Callable[[Callable[[], Any]], int]
) -> None:
    rows, vocabulary = 1024, 1000
    embedding, bias = random_head(vocabulary, 8)
    hidden, positions = random_states(rows, 8), torch.arange(rows)
    expected = sample_tokens(hidden, embedding, bias, positions, seed=0)
    block_bytes(16 * vocabulary * 12)  # logits in float32 and their cumulative sums in float64, for 16 rows
    # the function itself: of an operator, only the result would be seen
    peak = peak_memory(lambda: reference.sample_tokens(hidden, embedding, bias, positions, seed=0))
    assert peak < 17 * vocabulary * 12 + 4 * (embedding.numel() + hidden.numel()) + 100 * rows
    assert peak < rows * vocabulary * 4 / 10
    assert torch.equal(sample_tokens(hidden, embedding, bias, positions, seed=0), expected)


HEAD = {
    "hidden": torch.zeros(4, 3),
    "embedding": torch.zeros(7, 3),
    "bias": torch.zeros(7),
    "positions": torch.arange(4),
    "seed": 0,
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": torch.zeros(4)}, "hidden must be a floating-point matrix"),
        ({"embedding": torch.zeros(7, 2)}, "differ in width: 3 and 2"),
        ({"bias": torch.zeros(6)}, r"bias must be \[7\]"),
        ({"positions": torch.arange(5)}, r"positions must be \[4\] of int64"),
        ({"positions": torch.arange(4).int()}, "positions must be .* of int64"),
        ({"forbidden": torch.zeros(7)}, "forbidden must be bool"),
        ({"forbidden": torch.zeros(6, dtype=torch.bool)}, r"forbidden must be \[7\]"),
        ({"forbidden": torch.ones(7, dtype=torch.bool)}, "excludes every token"),
        ({"temperature": -1.0}, "temperature must be 0 or a positive"),
        ({"impl": "cuda"}, "impl must be one of 'auto', 'triton', 'reference'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample_tokens(**{**HEAD, **changes})
