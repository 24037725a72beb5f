"""What the host does where optimizer state is offloaded to it."""

from __future__ import annotations

import os

import pytest
import torch

from diffcse_scale.engine import offload
from diffcse_scale.engine.offload import share_cores
from diffcse_scale.recipe_file import load_recipe

OFFLOADED = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}
CORES = set(range(32))


@pytest.fixture
def host(monkeypatch):
    """host(accelerator, hosts of the other ranks): this rank may use 32 cores; gives the thread counts that are set."""

    def arrange(accelerator="cuda", others=()):
        counts = []
        monkeypatch.setattr(offload, "device", lambda: torch.device(accelerator))
        monkeypatch.setattr(offload, "host_name", lambda: "here")
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: CORES)
        monkeypatch.setattr(offload, "gather_objects", lambda mine: [mine, *others])
        monkeypatch.setattr(torch, "set_num_threads", counts.append)
        for name in ("OMP_NUM_THREADS", "TORCHELASTIC_RUN_ID"):
            monkeypatch.delenv(name, raising=False)
        return counts

    return arrange


@pytest.mark.parametrize(
    ("others", "threads"),
    [
        ([], 32),
        ([("here", sorted(CORES))] * 3 + [("there", sorted(CORES))] * 4, 8),
        ([("here", list(range(32, 64)))], 32),  # bound to cores of its own
        ([("here", sorted(CORES))] * 63, 1),
    ],
)
def test_the_cores_of_a_host_are_divided_among_the_ranks_that_may_use_them(host, others, threads):
    counts = host(others=others)
    share_cores(OFFLOADED)
    assert counts == [threads]


def test_the_users_number_counts_and_torchruns_does_not(host, monkeypatch):
    counts = host()
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    share_cores(OFFLOADED)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    share_cores(OFFLOADED)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # it sets 1 where nothing is set
    share_cores(OFFLOADED)
    assert counts == [5, 1, 32]


def test_where_nothing_is_offloaded_and_on_cpus_no_thread_count_changes(host):
    counts = host()
    share_cores({"zero_optimization": {"stage": 2}})
    share_cores({"zero_optimization": {"stage": 2, "offload_optimizer": None}})
    host("cpu")
    share_cores(OFFLOADED)
    assert counts == []


def test_an_engine_shares_the_cores_before_it_is_made(host, monkeypatch):
    from diffcse_scale.engine import engine as module

    class Made(Exception):
        pass

    def initialize(**_):
        raise Made(counts)

    counts = host()
    monkeypatch.setattr(module.deepspeed, "initialize", initialize)
    monkeypatch.setattr(module, "make_optimizer", lambda *_: None)
    with pytest.raises(Made) as made:
        module.initialize(torch.nn.Linear(2, 2), load_recipe("quickstart"), OFFLOADED)
    assert made.value.args == ([32],)
