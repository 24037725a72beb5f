"""InfoNCE over a process group is that of one process with the whole batch, for both strategies, shares and nodes.

The truth is `info_nce` of the concatenated inputs in one process, in the same dtype: float64 to 1e-12; float32 to 1e-6
of each tensor's norm, times 0.05 / temperature below that temperature, because the rounding error of a cosine is
divided by it; bfloat16 to 2e-2, the ring's rounding of normalised rows included. The temperature's gradient may deviate
4 times as much: its terms have both signs, and cancel. So may everything of a global batch of one sentence, in float32:
the relative error of its one softmax is the absolute error of a logit of size 10, and there are no other rows over
which rounding averages (1.9e-6 on an AMD EPYC, below 1e-6 on others).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from diffcse_kernels import info_nce
from diffcse_kernels.reference import blocks
from torch import Tensor

from diffcse_scale import distributed
from diffcse_scale.objective import sharded_info_nce as module
from diffcse_scale.objective.sharded_info_nce import sharded_info_nce
from tests.support.kernels.faults import with_fault
from tests.support.kernels.live_memory import LiveMemory
from tests.support.ranks import run_ranks
from tests.support.tcp_bytes import sent_bytes

STRATEGIES = ("gather", "ring")
WORLDS = ("2", "4", "2 nodes of 2")
SHARES = {"2": [(6, 6), (7, 12)], "4": [(5, 0, 3, 9), (0, 0, 1, 0)]}
SHARES[WORLDS[2]] = [*SHARES["4"], (4, 4, 4, 4)]
OF = {"2": STRATEGIES, "4": STRATEGIES, WORLDS[2]: ("gather",)}  # the ring is the same on nodes
DTYPES = (torch.float64, torch.float32, torch.bfloat16)
OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "dot product": {"normalize": False},
    "sharp": {"temperature": 0.01},
    "hard negatives": {"hard_negative_weight": 0.7},
    "hard negatives and ids": {"hard_negative_weight": 0.7},
}
INPUTS = ("queries", "keys", "hard_negatives", "temperature")
IDS = ("query_ids", "key_ids", "hard_negative_ids")
Case = tuple[tuple[int, ...], torch.dtype, str]


def cases(world: str) -> list[Case]:
    return [(shares, dtype, options) for shares in SHARES[world] for dtype in DTYPES for options in OPTIONS]


def batch(rows: int, dtype: torch.dtype, options: dict[str, Any], width: int = 24) -> dict[str, Tensor]:
    """Everybody's inputs in rank order; some positives are found, some are not."""
    generator = torch.Generator().manual_seed(0)
    keys, noise, hard = torch.randn(3, rows, width, generator=generator, dtype=torch.float64)
    inputs = {"queries": keys + 1.5 * noise, "keys": keys}
    if "hard_negative_weight" in options:
        inputs["hard_negatives"] = hard
    if options.get("normalize") is False:
        inputs = {name: value / width**0.5 for name, value in inputs.items()}
    if options is OPTIONS["hard negatives and ids"]:
        # few enough values for every third column or so to be left out
        inputs |= dict(zip(IDS, torch.randint(6, (3, rows, 2), generator=generator), strict=True))
    temperature = torch.tensor(options.get("temperature", 0.05), dtype=torch.float64)
    precise = torch.promote_types(dtype, torch.float32)
    inputs = {name: value if name in IDS else value.to(dtype) for name, value in inputs.items()}
    return {**inputs, "temperature": temperature.to(precise)}


def outcome(function: Callable[..., Any], inputs: dict[str, Tensor], **options: Any) -> dict[str, Tensor]:
    """Loss, statistics and gradients."""
    leaves = {name: value.clone().requires_grad_() for name, value in inputs.items() if name not in IDS}
    options.pop("temperature", None)
    loss, stats = function(**leaves, **{name: inputs[name] for name in IDS if name in inputs}, **options)
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return {"loss": loss.detach(), **stats._asdict(), **dict(zip(leaves, gradients, strict=True))}


def one_process(case: Case) -> dict[str, Tensor]:
    shares, dtype, name = case
    return outcome(info_nce, batch(sum(shares), dtype, OPTIONS[name]), return_stats=True, **OPTIONS[name])


def one_rank(case: Case, strategy: str, function: Callable[..., Any] = sharded_info_nce) -> dict[str, Tensor]:
    shares, dtype, name = case
    inputs = batch(sum(shares), dtype, OPTIONS[name])
    own = {name: value.split(shares)[distributed.rank()] if value.dim() else value for name, value in inputs.items()}
    return outcome(function, own, strategy=strategy, **OPTIONS[name])


def joined(ranks: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The whole's loss, statistics and gradients from the ranks', as the docstring of `sharded_info_nce` says."""
    return {
        name: torch.cat(values) / len(ranks) if values[0].dim() else torch.stack(values).mean()
        for name in ranks[0]
        for values in [[rank[name] for rank in ranks]]
    }


def largest_deviation(found: dict[str, Tensor], truth: dict[str, Tensor]) -> float:
    """Largest deviation relative to each tensor's norm; 0 where both are NaN."""
    assert found.keys() == truth.keys()
    deviations = []
    for name, true in truth.items():
        assert found[name].dtype == true.dtype, name
        both_nan = found[name].isnan() & true.isnan()
        deviation = (found[name].double() - true.double()).masked_fill(both_nan, 0).norm()
        norm = true.double().nan_to_num(0).norm().clamp_min(1e-12)
        deviations.append(float(deviation / norm) / (4 if name == "temperature" else 1))
    return max(deviations)


def tolerance(case: Case) -> float:
    shares, dtype, name = case
    amplified = max(1.0, 0.05 / OPTIONS[name].get("temperature", 0.05)) * (4 if sum(shares) == 1 else 1)
    return {torch.float64: 1e-12, torch.float32: 1e-6 * amplified, torch.bfloat16: 2e-2}[dtype]


FAULTS = {
    "a block's gradient does not return": (
        "grad_columns.append(sums.total())",
        "grad_columns.append([sums.total(), grad_k][1])",
    ),
    "a rank divides by its own count": ("loss_sum * ranks.world_size / sum(shares)", "loss_sum / len(queries)"),
    "only the last block counts in the loss": ("torch.logaddexp(negatives, logsumexp)", "logsumexp"),
    "only the last block counts in the gradient": ("grad_queries += grad_q", "grad_queries = grad_q"),
    "the positive is left out of the gradient": ("own = [-missed,", "own = [0 * missed,"),
    "the scale is left out of the gradient": ("missed = upstream * scale", "missed = upstream"),
}
FAULTY_CASE: Case = ((6, 6), torch.float64, "defaults")
UNEVEN_CASE: Case = ((7, 12), torch.float64, "defaults")


def faulty(folder: Path) -> dict[str, dict[str, Tensor]]:
    found = {}
    for fault, (old, new) in FAULTS.items():
        case = UNEVEN_CASE if "count" in fault else FAULTY_CASE
        changed = with_fault(module, old, new, folder)
        found[fault] = one_rank(case, "ring", changed.sharded_info_nce)
    return found


def gathered(shares: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """All rows, and the gradient of this rank's when rank r's objective weighs them by r + 1."""
    rows = torch.arange(sum(shares) * 6, dtype=torch.float64).reshape(-1, 3, 2)
    own = rows.split(shares)[distributed.rank()].clone().requires_grad_()
    everybody = distributed.gather_rows(own, shares)
    (gradient,) = torch.autograd.grad(((distributed.rank() + 1) * everybody**2).sum(), own)
    return everybody.detach(), gradient


def weights_of_gathered(rank: int) -> Tensor:
    return torch.rand(4, 500, generator=torch.Generator().manual_seed(rank)).bfloat16()


def gradient_in_bfloat16() -> Tensor:
    """This rank's own of one row a rank, when each rank weighs all of them."""
    own = torch.zeros(1, 500, dtype=torch.bfloat16, requires_grad=True)
    weights = weights_of_gathered(distributed.rank())[: distributed.world_size()]
    (gradient,) = torch.autograd.grad((weights * distributed.gather_rows(own)).sum(), own)
    return gradient


def peak_bytes(strategy: str, share: int, width: int) -> int:
    """Of forward and backward, with blocks of similarities too small to count."""
    queries, keys = torch.randn(2, share, width).unbind()
    queries, keys = queries.clone().requires_grad_(), keys.clone().requires_grad_()
    with mock.patch.object(blocks, "BLOCK_BYTES", 1), LiveMemory() as memory:
        sharded_info_nce(queries, keys, strategy=strategy)[0].backward()
    return memory.peak


def bytes_sent(strategy: str, dtype: torch.dtype) -> float:
    """Of forward and backward, for every byte of this rank's keys."""
    queries, keys = torch.randn(2, 256, MEASURED_WIDTH).to(dtype).unbind()
    queries, keys = queries.clone().requires_grad_(), keys.clone().requires_grad_()
    distributed.barrier()
    before = sent_bytes()
    sharded_info_nce(queries, keys, strategy=strategy, shares=[256] * distributed.world_size())[0].backward()
    distributed.barrier()  # all has left
    return (sent_bytes() - before) / keys.nbytes


def order_of_events() -> dict[str, list[str]]:
    """When a forward and a backward pass start a transfer, wait for one, and multiply."""
    events: list[str] = []

    def recorded(event: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            events.append(event)
            return function(*arguments)

        return call

    with (
        mock.patch.object(distributed.Ranks, "pass_on", recorded("send", distributed.Ranks.pass_on)),
        mock.patch.object(distributed.Transfer, "wait", recorded("wait", distributed.Transfer.wait)),
        mock.patch.object(module, "block_logsumexp", recorded("product", module.block_logsumexp)),
        mock.patch.object(module, "block_gradients", recorded("product", module.block_gradients)),
    ):
        loss, _ = sharded_info_nce(torch.randn(2, 3, requires_grad=True), torch.randn(2, 3), strategy="ring")
        forward = events.copy()
        events.clear()
        loss.backward()
    return {"forward": forward, "backward": events}


MEASURED_SHARE, MEASURED_WIDTH = 64, 64


def everything(folder: Path, world: str) -> dict[str, Any]:
    """What one rank finds, for all tests below: starting ranks takes seconds."""
    folder = folder / f"source{distributed.rank()}"
    folder.mkdir()
    found: dict[str, Any] = {strategy: [one_rank(case, strategy) for case in cases(world)] for strategy in OF[world]}
    found["again"] = [one_rank(case, OF[world][-1]) for case in cases(world)]
    found["gathered"] = [gathered(shares) for shares in SHARES[world]]
    found["gradient in bfloat16"] = gradient_in_bfloat16()
    found["peak"] = {strategy: peak_bytes(strategy, MEASURED_SHARE, MEASURED_WIDTH) for strategy in OF[world]}
    ways = itertools.product(OF[world], (torch.float32, torch.bfloat16))
    found["sent"] = {(strategy, dtype): bytes_sent(strategy, dtype) for strategy, dtype in ways}
    if world == "2":
        found["faulty"] = faulty(folder)
        found["events"] = order_of_events()
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    found = {}
    for world in WORLDS:
        folder, per_node = tmp_path_factory.mktemp("ranks"), 2 if "nodes" in world else None
        found[world] = run_ranks(everything, len(SHARES[world][0]), folder, folder, world, per_node=per_node)
    return found


@pytest.mark.parametrize(("world", "strategy"), [(world, strategy) for world in WORLDS for strategy in OF[world]])
def test_loss_statistics_and_gradients_are_those_of_one_process(ranks, world: str, strategy: str) -> None:
    for number, case in enumerate(cases(world)):
        found = joined([rank[strategy][number] for rank in ranks[world]])
        assert largest_deviation(found, one_process(case)) < tolerance(case), case


@pytest.mark.parametrize("fault", FAULTS)
def test_each_planted_fault_is_noticed(ranks, fault: str) -> None:
    found = joined([rank["faulty"][fault] for rank in ranks["2"]])
    case = UNEVEN_CASE if "count" in fault else FAULTY_CASE
    assert largest_deviation(found, one_process(case)) > 1e-3


@pytest.mark.parametrize("world", WORLDS)
def test_ring_and_two_levels_give_the_same_bits_again(ranks, world: str) -> None:
    for rank in ranks[world]:
        torch.testing.assert_close(rank[OF[world][-1]], rank["again"], rtol=0, atol=0, equal_nan=True)


def test_the_next_block_travels_while_the_current_one_is_multiplied(ranks) -> None:
    for rank in ranks["2"]:
        assert rank["events"]["forward"] == ["send", "product", "wait", "product"]
        # in backward the gradient of a block is sent when it is made, and waited for when the next one is
        assert rank["events"]["backward"] == ["send", "product", "send", "wait", "product", "wait", "send", "wait"]


def test_memory_of_the_ring_does_not_grow_with_the_number_of_ranks(ranks) -> None:
    block = MEASURED_SHARE * MEASURED_WIDTH * 4
    growth = {
        strategy: (ranks["4"][0]["peak"][strategy] - ranks["2"][0]["peak"][strategy]) / block for strategy in STRATEGIES
    }
    assert growth["ring"] < 1.1  # with two ranks only one other block is on its way
    assert growth["gather"] > 3  # the measure sees what it is to see


@pytest.mark.parametrize("world", WORLDS)
def test_keys_are_sent_in_their_own_dtype_and_as_often_as_is_needed(ranks, world: str) -> None:
    """What the kernel has counted on the connections of a rank; the rest is messages' heads and a few sums."""
    size = len(ranks[world])
    for rank in ranks[world]:
        for (strategy, dtype), sent in rank["sent"].items():
            # a ring's sums, in float32, go to every rank and back to their owner
            sums = size * 4 / dtype.itemsize if strategy == "ring" else 0
            if strategy == "gather" and world == WORLDS[2]:
                sums = 4 / dtype.itemsize - 1  # to the other node gradients go as sums in float32
            assert sent == pytest.approx(2 * (size - 1) + sums, rel=0.05), (strategy, dtype)


@pytest.mark.parametrize("world", WORLDS)
def test_uneven_rows_are_gathered_in_rank_order_and_their_gradient_is_summed_over_ranks(ranks, world: str) -> None:
    for number, shares in enumerate(SHARES[world]):
        rows = torch.arange(sum(shares) * 6, dtype=torch.float64).reshape(-1, 3, 2)
        weight = sum(range(len(shares) + 1))
        for rank, own in zip(ranks[world], rows.split(shares), strict=True):
            everybody, gradient = rank["gathered"][number]
            torch.testing.assert_close(everybody, rows, rtol=0, atol=0)
            torch.testing.assert_close(gradient, weight * 2 * own, rtol=0, atol=0)


@pytest.mark.parametrize("world", WORLDS)
def test_gradients_in_bfloat16_are_added_up_over_ranks_in_float32(ranks, world: str) -> None:
    """Adding in bfloat16 would round after every rank: with 4 ranks most of the 500 entries differ then."""
    total = sum(weights_of_gathered(rank).float() for rank in range(len(ranks[world]))).bfloat16()
    for rank, found in enumerate(ranks[world]):
        torch.testing.assert_close(found["gradient in bfloat16"][0], total[rank], rtol=0, atol=0)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_without_a_process_group_it_is_info_nce(dtype: torch.dtype, options: str, strategy: str) -> None:
    case = ((19,), dtype, options)
    assert largest_deviation(one_rank(case, strategy), one_process(case)) < tolerance(case)


def test_a_single_row_has_no_loss_and_no_gradient() -> None:
    found = one_rank(((1,), torch.float64, "defaults"), "ring")
    assert found["accuracy"] == 1 and math.isnan(found["negative_cosine"])
    assert not any(found[name].any() for name in ("loss", "queries", "keys", "temperature"))


def test_nearly_certain_positives_keep_their_relative_precision_in_the_ring() -> None:
    """1 - p would be zero in float32, and with it the loss and both gradients."""
    generator = torch.Generator().manual_seed(1)
    inputs = {name: torch.eye(4) + 0.05 * torch.randn(4, 4, generator=generator) for name in ("queries", "keys")}
    found = outcome(sharded_info_nce, inputs, strategy="ring")
    double = {name: value.double() for name, value in inputs.items()}
    truth = outcome(info_nce, double, return_stats=True)
    assert 0 < float(truth["loss"]) < 5e-8  # 1 + loss is 1 in float32
    for name in ("loss", "queries", "keys"):
        assert float((found[name].double() - truth[name]).norm() / truth[name].norm()) < 1e-4, name


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_zero_rows_have_cosine_zero_and_no_gradient(strategy: str) -> None:
    inputs = batch(5, torch.float32, {})
    inputs["queries"][1], inputs["keys"][2] = 0, 0
    found = outcome(sharded_info_nce, inputs, strategy=strategy)
    assert all(value.isfinite().all() for value in found.values())
    assert not found["queries"][1].any() and not found["keys"][2].any()
    assert largest_deviation(found, outcome(info_nce, inputs, return_stats=True)) < 1e-6


def test_half_precision_gradients_keep_a_loss_scale_in_the_ring() -> None:
    inputs = {name: batch(64, torch.float16, {})[name] for name in ("queries", "keys")}
    inputs["queries"] *= 1000  # gradients of about 1e-6, below the normal numbers of float16
    queries = inputs["queries"].clone().requires_grad_()
    scale = 2.0**14
    loss, _ = sharded_info_nce(queries, inputs["keys"], strategy="ring")
    (gradient,) = torch.autograd.grad(loss * scale, queries)
    exact = outcome(info_nce, {n: value.double() for n, value in inputs.items()}, return_stats=True)["queries"] * scale
    assert float((gradient.double() - exact).norm() / exact.norm()) < 5e-3


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_autocast_changes_nothing(strategy: str) -> None:
    inputs = batch(9, torch.float32, {})
    expected = outcome(sharded_info_nce, inputs, strategy=strategy)
    with torch.autocast("cpu", torch.bfloat16):
        found = outcome(sharded_info_nce, inputs, strategy=strategy)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


ROWS = torch.zeros(4, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"queries": ROWS[0], "keys": ROWS[0]}, "queries must be a floating-point matrix"),
        ({"keys": ROWS[:3]}, r"keys must be .* shape \[4, 3\], not \[3, 3\]"),
        ({"keys": ROWS.long()}, "keys must be a floating-point matrix"),
        ({"hard_negatives": ROWS[:3]}, "hard_negatives must be"),
        ({"temperature": 0.0}, "temperature must be a positive number"),
        ({"query_ids": torch.zeros(4, dtype=torch.int64)}, "query_ids and key_ids must be given together"),
        ({"query_ids": torch.zeros(4), "key_ids": torch.zeros(4)}, r"query_ids must be int64 \[4\] or \[4, C\], not"),
        (
            {"query_ids": torch.zeros(4, 2, dtype=torch.int64), "key_ids": torch.zeros(4, dtype=torch.int64)},
            "same number of places",
        ),
        ({"strategy": "tree"}, "strategy must be 'auto', 'gather' or 'ring', not 'tree'"),
        ({"queries": ROWS[:0], "keys": ROWS[:0]}, "no rank has a row"),
        ({"shares": [3]}, "shares says that rank 0 has 3 rows, but it has 4"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sharded_info_nce(**{"queries": ROWS, "keys": ROWS, **arguments})
