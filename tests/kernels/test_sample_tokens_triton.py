"""Triton's sampling against float64, on whatever runs it here: a GPU, or Triton's interpreter.

Both invert one cumulative distribution at one uniform number, so their tokens are equal but for numbers within
rounding of a step: of a few hundred rows, none is expected to differ and one in a hundred may.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffcse_kernels import counter_uniform, sample_tokens
from scipy.stats import chisquare
from torch import Tensor

from tests.support.kernels.faults import with_fault

pytest.importorskip("triton")
from diffcse_kernels.triton import sample_tokens as triton_sample_tokens

# temperature 0 and forbidden tokens overflow to minus infinity on purpose
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
AGREEMENT = 0.99
shipped_draw_tiles = triton_sample_tokens.draw_tiles


@pytest.fixture(autouse=True)
def many_rows_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter's time goes by the number of programs."""
    if DEVICE == "cpu":
        monkeypatch.setattr(
            triton_sample_tokens, "draw_tiles", lambda size: shipped_draw_tiles(size)._replace(block_t=64)
        )


def head(rows: int, vocabulary: int, width: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(rows + vocabulary + width)
    inputs = {
        "hidden": torch.randn(rows, width, generator=generator),
        "embedding": torch.randn(vocabulary, width, generator=generator) / width**0.5,
        "bias": torch.randn(vocabulary, generator=generator),
    }
    positions = torch.randint(2**62, (rows,), generator=generator)
    return {name: value.to(DEVICE, dtype) for name, value in inputs.items()} | {"positions": positions.to(DEVICE)}


def probabilities(
    hidden: Tensor, embedding: Tensor, bias: Tensor | None, temperature: float = 1.0, forbidden: Tensor | None = None
) -> Tensor:
    """[T, V] in float64."""
    logits = hidden.double() @ embedding.double().T
    if bias is not None:
        logits += bias.double()
    if forbidden is not None:
        logits[:, forbidden] = -torch.inf
    return (logits / temperature).softmax(1)


def exact_tokens(*, positions: Tensor, seed: int, **distribution: Any) -> Tensor:
    """What `sample_tokens` returns where nothing is rounded."""
    cumulative = probabilities(**distribution).cumsum(1)
    target = counter_uniform(seed, positions)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True)[:, 0]


def agreement(ids: Tensor, **arguments: Any) -> float:
    return float((ids == exact_tokens(**arguments)).double().mean())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("rows", "vocabulary", "width", "temperature"),
    [
        (300, 300, 32, 1.0),  # several tiles of rows and of the vocabulary
        (130, 97, 129, 0.4),  # one token in the last slice, one number in the last step over the width
        (70, 32, 64, 3.0),  # one slice
        (1, 5, 3, 1.0),
        (1, 1, 1, 1.0),
    ],
)
def test_draws_the_token_where_the_distribution_exceeds_the_uniform_number(
    dtype: torch.dtype, rows: int, vocabulary: int, width: int, temperature: float
) -> None:
    arguments = head(rows, vocabulary, width, dtype) | {"seed": 3, "temperature": temperature}
    ids = sample_tokens(**arguments, impl="triton")
    assert ids.dtype == torch.int64
    assert agreement(ids, **arguments) >= AGREEMENT


@pytest.mark.parametrize("vocabulary", [1100, 200])
def test_the_shipped_tiles_draw_the_same_tokens(vocabulary: int, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = head(6, vocabulary, 40) | {"seed": 0}
    ids = sample_tokens(**arguments, impl="triton")
    monkeypatch.setattr(triton_sample_tokens, "draw_tiles", shipped_draw_tiles)
    assert torch.equal(sample_tokens(**arguments, impl="triton"), ids)


@pytest.mark.parametrize("bias", [True, False])
def test_draws_follow_the_softmax(bias: bool) -> None:
    """Three distributions, 700 draws from each."""
    arguments = head(3, 40, 8, torch.bfloat16)
    if not bias:
        arguments["bias"] = None
    forbidden = torch.arange(40, device=DEVICE) % 3 == 0
    options = {"temperature": 0.7, "forbidden": forbidden}
    expected = probabilities(arguments["hidden"], arguments["embedding"], arguments["bias"], **options) * 700
    arguments |= {
        "hidden": arguments["hidden"].repeat_interleave(700, 0),
        "positions": torch.arange(2100, device=DEVICE),
    }
    ids = sample_tokens(**arguments, seed=11, **options, impl="triton")
    assert not forbidden[ids].any()
    for row, counts in zip(ids.view(3, 700).cpu(), expected.cpu(), strict=True):
        observed = torch.bincount(row, minlength=40).double()
        usual = counts > 5  # the chi-square approximation needs counts; the rest makes one class
        observed = torch.cat([observed[usual], observed[~usual].sum()[None]])
        counts = torch.cat([counts[usual], counts[~usual].sum()[None]])
        assert chisquare(observed.numpy(), counts.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forbidden_tokens_and_whole_forbidden_slices_are_never_drawn(dtype: torch.dtype) -> None:
    forbidden = torch.ones(300, dtype=torch.bool, device=DEVICE)
    forbidden[[70, 71, 140, 250]] = False
    arguments = head(200, 300, 16, dtype) | {"seed": 5, "forbidden": forbidden}
    ids = sample_tokens(**arguments, impl="triton")
    assert set(ids.tolist()) == {70, 71, 140, 250}
    assert agreement(ids, **arguments) >= AGREEMENT


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_temperature_zero_is_the_most_probable_allowed_token(dtype: torch.dtype) -> None:
    arguments = head(150, 300, 33, dtype)
    forbidden = torch.arange(300, device=DEVICE) % 2 == 0
    for options in ({}, {"forbidden": forbidden}):
        ids = sample_tokens(**arguments, seed=0, temperature=0.0, **options, impl="triton")
        matrix = {name: value for name, value in arguments.items() if name != "positions"}
        assert torch.equal(ids, probabilities(**matrix, **options).argmax(1))


@pytest.mark.parametrize("distance", [16, 40, 150])
def test_temperature_zero_takes_the_lowest_of_equal_tokens(distance: int) -> None:
    """Equal within a slice, in two slices of a tile, in two tiles.

    The logits are sums of 20 ones, exact in any order: a product may sum two equal columns in different orders.
    """
    arguments = head(15, 300, 20) | {"bias": None}
    arguments["hidden"] = arguments["hidden"].sign()
    arguments["embedding"][:15] = arguments["embedding"][distance : distance + 15] = arguments["hidden"]
    ids = sample_tokens(**arguments, seed=0, temperature=0.0, impl="triton")
    assert torch.equal(ids.cpu(), torch.arange(15))


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_a_row_gets_the_same_token_however_rows_are_grouped(
    temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = head(300, 130, 17) | {"seed": 9, "temperature": temperature}
    row_arguments = {name: arguments.pop(name) for name in ("hidden", "positions")}

    def sample(index: Tensor) -> Tensor:
        rows = {name: value[index.to(DEVICE)] for name, value in row_arguments.items()}
        return sample_tokens(**rows, **arguments, impl="triton").cpu()

    everything = sample(torch.arange(300))
    for group in torch.arange(300).split([1, 70, 229]):
        assert torch.equal(sample(group), everything[group])
    later = {name: value[1:] for name, value in row_arguments.items()}
    assert torch.equal(sample_tokens(**later, **arguments, impl="triton").cpu(), everything[1:])
    shuffled = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sample(shuffled), everything[shuffled])
    monkeypatch.setattr(triton_sample_tokens, "WORKSPACE_BYTES", 1)  # as few rows at once as a tile has
    assert torch.equal(sample(torch.arange(300)), everything)


@pytest.mark.parametrize("temperature", [1e-6, 1e-300])
def test_a_small_temperature_and_large_logits_do_not_overflow(temperature: float) -> None:
    arguments = head(70, 100, 4)
    arguments["hidden"] *= 1e4
    ids = sample_tokens(**arguments, seed=0, temperature=temperature, impl="triton")
    logits = arguments["hidden"].double() @ arguments["embedding"].double().T + arguments["bias"].double()
    assert torch.equal(ids, logits.argmax(1))


def test_a_large_temperature_draws_every_allowed_token_alike() -> None:
    arguments = head(500, 10, 4)
    forbidden = torch.arange(10, device=DEVICE) < 5
    ids = sample_tokens(**arguments, seed=0, temperature=1e300, forbidden=forbidden, impl="triton").cpu()
    assert chisquare(torch.bincount(ids, minlength=10)[5:].numpy()).pvalue > 1e-3
    assert ids.min() == 5


def test_a_bias_of_minus_infinity_forbids() -> None:
    arguments = head(100, 70, 8) | {"seed": 0}
    arguments["bias"][::2] = -torch.inf
    ids = sample_tokens(**arguments, impl="triton")
    assert (ids % 2 == 1).all()
    assert agreement(ids, **arguments) >= AGREEMENT


@pytest.mark.parametrize(("number", "token"), [(0.0, 33), (1 - 2**-53, 65)])
def test_the_ends_of_the_distribution_are_tokens_with_probability(
    number: float, token: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a sum is rounded, the last target may be the whole sum, which nothing exceeds."""

    def constant(seed: int, positions: Tensor) -> Tensor:
        return torch.full_like(positions, number, dtype=torch.float64)

    monkeypatch.setattr(triton_sample_tokens, "counter_uniform", constant)
    arguments = head(64, 130, 8)
    tokens = torch.arange(130, device=DEVICE)
    forbidden = (tokens < 33) | (tokens > 65)
    ids = sample_tokens(**arguments, seed=0, forbidden=forbidden, impl="triton")
    assert (ids == token).all()


def test_mixed_dtypes_and_strides_are_taken_as_they_come() -> None:
    arguments = head(70, 100, 24, torch.bfloat16) | {"seed": 0}
    arguments["embedding"] = arguments["embedding"].float().T.contiguous().T
    arguments["bias"] = arguments["bias"].double()
    arguments["hidden"] = arguments["hidden"][:1].expand(70, 24)
    assert agreement(sample_tokens(**arguments, impl="triton"), **arguments) >= AGREEMENT


def test_no_rows_give_no_tokens() -> None:
    assert sample_tokens(**head(0, 50, 4), seed=0, impl="triton").shape == (0,)


def test_float64_is_left_to_the_reference() -> None:
    with pytest.raises(ValueError, match="float64"):
        sample_tokens(**head(4, 50, 4, torch.float64), seed=0, impl="triton")


def test_autocast_and_gradient_mode_change_nothing() -> None:
    arguments = head(70, 100, 24) | {"seed": 0}
    expected = sample_tokens(**arguments, impl="triton")
    with torch.autocast(DEVICE, torch.bfloat16):
        assert torch.equal(sample_tokens(**arguments, impl="triton"), expected)
    ids = sample_tokens(**arguments | {"hidden": arguments["hidden"].requires_grad_()}, impl="triton")
    assert torch.equal(ids, expected)
    assert not ids.requires_grad


def test_compiles_without_a_graph_break() -> None:
    arguments = head(40, 50, 8)
    sample = torch.compile(
        lambda seed: sample_tokens(**arguments, seed=seed, impl="triton") + 1, fullgraph=True, backend="aot_eager"
    )
    for seed in (0, 1):
        assert torch.equal(sample(seed), sample_tokens(**arguments, seed=seed, impl="triton") + 1)


def test_the_operator_is_registered_as_torch_wants_it() -> None:
    arguments = head(10, 50, 8)
    forbidden = torch.arange(50, device=DEVICE) < 3
    operator = torch.ops.diffcse_kernels.sample_tokens.default
    torch.library.opcheck(operator, (*arguments.values(), 7, 0.5, forbidden, "triton"))


def test_the_logits_of_all_rows_never_exist(
    monkeypatch: pytest.MonkeyPatch, peak_memory: Callable[[Callable[[], Any]], int]
) -> None:
    rows, vocabulary = 1024, 1000
    arguments = head(rows, vocabulary, 4) | {"seed": 0, "temperature": 1.0, "forbidden": None}
    monkeypatch.setattr(triton_sample_tokens, "WORKSPACE_BYTES", 128 * 1000)
    monkeypatch.setattr(triton_sample_tokens, "weigh_slices_kernel", _no_kernel())
    monkeypatch.setattr(triton_sample_tokens, "draw_kernel", _no_kernel())
    peak = peak_memory(lambda: triton_sample_tokens.sample_tokens(**arguments))
    assert peak < 128 * 1000 + 100 * rows + 4 * sum(arguments[name].numel() for name in ("hidden", "embedding"))
    assert peak < rows * vocabulary * 4 / 10


def _no_kernel() -> Any:
    """Memory is allocated outside of the kernels."""

    class Kernel:
        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            return lambda *tensors, **options: None

    return Kernel()


FAULTS = {
    "columns beyond the edge counted": (
        'mask=first_token + token < vocabulary, other=float("-inf")',
        "mask=first_token + token < vocabulary, other=0.0",
    ),
    "tokens beyond the edge drawn": (
        'mask=token < vocabulary, other=float("-inf")',
        "mask=token < vocabulary, other=0.0",
    ),
    "no temperature over the slices": ("tl.max(maximum, 1)[:, None]) * scale", "tl.max(maximum, 1)[:, None])"),
    "no temperature at all": ("math.log2(math.e) / temperature", "math.log2(math.e)"),
    "accumulation stops early": (
        "for start in range(0, width, BLOCK_D):\n        if",
        "for start in range(0, width - BLOCK_D, BLOCK_D):\n        if",
    ),
    "accumulation of the second product stops early": (
        "for start in range(0, width, BLOCK_D):\n        state",
        "for start in range(0, width - BLOCK_D, BLOCK_D):\n        state",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_the_comparison_notices(fault: str, tmp_path: Path) -> None:
    changed = with_fault(triton_sample_tokens, *FAULTS[fault], tmp_path)
    arguments = head(200, 65, 64) | {"seed": 3, "temperature": 2.0}
    arguments["bias"][-1] = 6.0  # the last token, alone in its slice, is drawn often
    assert agreement(sample_tokens(**arguments, impl="triton"), **arguments) >= AGREEMENT
    ids = changed.sample_tokens(**arguments, forbidden=None)
    assert agreement(ids, **arguments) < AGREEMENT - 0.05
