"""The exchange of embeddings in two levels, between nodes and within them: what it gives, and what leaves a node.

Ranks are processes of one machine that lie on named nodes. `test_sharded_info_nce.py` compares loss, statistics and
gradients of 2 nodes of 2 with those of one process. Here two levels are compared with one level on the same ranks.
Gathered rows are equal to the last bit. In float64 and float32, gradients differ only by the order of sums: by 1e-15
and 1e-6 of their norm. In bfloat16 they are rounded once, after a sum that is exact here, and equal to the last bit.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from diffcse_scale.distributed import PROCESS_GROUP, barrier, gather_rows, rank, world_size
from diffcse_scale.objective.sharded_info_nce import sharded_info_nce
from diffcse_scale.rendezvous import descriptors_needed, ranks_per_node
from tests.support.launch import Ranks, metrics
from tests.support.ranks import run_ranks
from tests.support.tcp_bytes import sent_between_nodes, sent_by_connection

SHARES = ((4, 4, 4, 4), (5, 0, 3, 9), (0, 0, 1, 0), (0, 2, 0, 2), (3, 3, 0, 0), (0, 0, 0, 0))
TOLERANCES = {torch.float64: 1e-15, torch.float32: 1e-6, torch.bfloat16: 0.0}
ROWS, WIDTH = 256, 64  # of a rank, where bytes are counted


def gathered(shares: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """All ranks' rows, and the gradient of this rank's if each rank weighs all rows in its own way."""
    generator = torch.Generator().manual_seed(0)
    rows, *weights = torch.rand(1 + world_size(), sum(shares), 3, 2, generator=generator).to(dtype)
    own = rows.split(shares)[rank()].clone().requires_grad_()
    everybody = gather_rows(own, shares)
    (gradient,) = torch.autograd.grad((everybody * weights[rank()]).sum(), own)
    return everybody.detach(), gradient


def sent(dtype: torch.dtype) -> Any:
    """Bytes by connection of forward and backward, for every byte of this rank's keys."""
    queries, keys = (torch.randn(ROWS, WIDTH).to(dtype).requires_grad_() for _ in range(2))
    before = None
    for _ in range(2):  # the first opens the connections
        barrier()
        before = sent_by_connection()
        sharded_info_nce(queries, keys, shares=[ROWS] * world_size())[0].backward()
    barrier()  # all has left
    return {where: (size - before[where]) / keys.nbytes for where, size in sent_by_connection().items()}


def both_ways(work: Callable[..., Any], *arguments: Any) -> tuple[Any, Any]:
    """What `work` gives in two levels, and in one."""
    two = work(*arguments)
    with mock.patch.object(PROCESS_GROUP, "_per_node", 1), mock.patch.object(PROCESS_GROUP, "_levels", None):
        return two, work(*arguments)


def everything() -> dict[str, Any]:
    """What one rank finds; opened: how many descriptors the groups take; made: how many groups there are."""
    with mock.patch.object(dist, "new_group", wraps=dist.new_group) as make:
        barrier()
        before = len(os.listdir("/proc/self/fd"))
        gather_rows(torch.ones(1, 1))
        opened = len(os.listdir("/proc/self/fd")) - before
        found = {case: both_ways(gathered, *case) for case in CASES} if world_size() == 4 else {}
        bytes_sent = {dtype: both_ways(sent, dtype) for dtype in (torch.float32, torch.bfloat16)}
    return {"gathered": found, "opened": opened, "sent": bytes_sent, "made": make.call_count}


CASES = [(shares, dtype) for shares in SHARES for dtype in TOLERANCES]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Of 2 nodes of 2."""
    return run_ranks(everything, 4, tmp_path_factory.mktemp("ranks"), per_node=2)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("shares", SHARES)
def test_rows_and_gradients_are_those_of_one_level(ranks, shares, dtype) -> None:
    for of_rank in ranks:
        (rows, gradient), (flat_rows, flat_gradient) = of_rank["gathered"][shares, dtype]
        assert torch.equal(rows, flat_rows) and gradient.dtype == dtype
        deviation = (gradient - flat_gradient).double().norm()
        assert deviation <= TOLERANCES[dtype] * flat_gradient.double().norm()


def test_groups_are_made_once_and_take_the_descriptors_that_are_checked(ranks) -> None:
    for of_rank in ranks:
        assert of_rank["made"] == 2
        assert 0 < of_rank["opened"] <= descriptors_needed(1, 4, 2) - descriptors_needed(1, 4)


def check_bytes(ranks: list[dict[str, Any]], per_node: int) -> None:
    """In one level the ring's last rank of a node sends all others' rows on, and every rank sends gradients to all."""
    size, nodes = len(ranks), len(ranks) // per_node
    for dtype in (torch.float32, torch.bfloat16):
        two, one = (
            sent_between_nodes([of_rank["sent"][dtype][way] for of_rank in ranks], per_node) for way in range(2)
        )
        sums = 4 / dtype.itemsize  # gradients travel between nodes as sums in float32
        assert two == pytest.approx([(nodes - 1) * (1 + sums)] * size, rel=0.05)
        last = [number % per_node == per_node - 1 for number in range(size)]
        assert one == pytest.approx([size - per_node + is_last * (size - 1) for is_last in last], rel=0.05)


def test_between_nodes_every_rank_sends_its_rows_and_a_sum_to_each_other_node(ranks) -> None:
    check_bytes(ranks, 2)


@pytest.mark.slow
@pytest.mark.parametrize("per_node", [2, 4])
def test_so_it_does_on_more_nodes_and_on_larger_ones(tmp_path, per_node) -> None:
    check_bytes(run_ranks(everything, 8, tmp_path, per_node=per_node), per_node)


@pytest.mark.parametrize(
    ("hosts", "per_node"),
    [
        ("aabb", 2),
        ("aaabbbccc", 3),
        ("a", 1),
        ("aaaa", 1),
        ("abcd", 1),
        ("aab", 1),
        ("abb", 1),
        ("aabbb", 1),
        ("abab", 1),
        ("aabbaa", 1),
    ],
)
def test_nodes_are_equal_blocks_or_there_is_one_level(hosts: str, per_node: int) -> None:
    assert ranks_per_node([host.encode() for host in hosts]) == per_node


def losses(world: Path, run: Path, per_node: int | None) -> list[float]:
    """Of four steps at ZeRO-3, with weights that are whole on a node too, in chunks."""
    zero = {"stage": 3, "stage3_param_persistence_threshold": 0, "zero_hpz_partition_size": 2}
    file = run.with_suffix(".json")
    file.write_text(json.dumps({"zero_optimization": zero}))
    arguments = ("--deepspeed_config", str(file), "--recipe", str(world / "toy.yaml"), "--output", str(run))
    keys = ("max_steps=4", "model.dropout=0", "batch.chunk=2", "batch.exchange=gather", "evaluation.data=null")
    with Ranks(run.parent / f"said-{per_node}", *arguments, *keys, count=4, per_node=per_node) as started:
        assert started.wait() == [0] * 4, started.output()
    return [row["loss"] for row in metrics(run) if "loss" in row]


@pytest.mark.slow
def test_a_run_on_two_nodes_learns_what_it_learns_on_one(toy_world, tmp_path) -> None:
    on_one, on_two = (losses(toy_world, tmp_path / f"run-{per_node}", per_node) for per_node in (None, 2))
    assert len(on_one) == 4 and on_two[:3] == pytest.approx(on_one[:3], rel=1e-4)
    assert on_two == pytest.approx(on_one, rel=1e-3)  # Adam amplifies another order of sums


def of_unequal_nodes() -> tuple[int, Tensor, bool]:
    with mock.patch.object(dist, "new_group", wraps=dist.new_group) as make:
        rows = gather_rows(torch.full((1, 1), float(rank())))
    return make.call_count, rows.flatten(), PROCESS_GROUP.levels is None


def test_ranks_on_unequal_nodes_exchange_in_one_level(tmp_path) -> None:
    for made, rows, flat in run_ranks(of_unequal_nodes, 3, tmp_path, per_node=2):
        assert made == 0 and flat and rows.tolist() == [0, 1, 2]
