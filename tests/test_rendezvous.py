"""How long ranks wait, and on which network they listen."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from diffcse_scale import distributed, rendezvous
from diffcse_scale.distributed import CONTROL_PATIENCE, barrier, is_main
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.rendezvous import bind_to_the_masters_network, descriptors_needed, free_port, interface_to, join
from diffcse_scale.supervision import watchdog
from tests.support.ranks import places, run_ranks


@pytest.mark.parametrize("backend", ["nccl", "gloo"])
def test_a_collectives_patience_outlasts_a_suspended_job(monkeypatch, backend):
    asked = {}
    monkeypatch.setattr(dist, "init_process_group", lambda name, **options: asked.update(options, backend=name))
    monkeypatch.setattr(rendezvous, "_store", None)
    for name, value in places(1)[0].items():
        monkeypatch.setenv(name, value)
    join(backend, 120)
    assert (asked["backend"], asked["timeout"]) == (backend, CONTROL_PATIENCE)
    assert timedelta(days=14) < CONTROL_PATIENCE < timedelta(milliseconds=2**31)  # in which gloo and the store count


def test_ranks_wait_for_a_slow_disk_on_the_control_group(monkeypatch):
    """NCCL's patience would end with the job, as the last of it, while rank 0 exports."""
    waited, made = [], []
    monkeypatch.setattr(dist, "get_backend", lambda: "nccl")
    monkeypatch.setattr(dist, "new_group", lambda **options: made.append(options) or "control")
    monkeypatch.setattr(dist, "barrier", lambda group=None: waited.append(group))
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    distributed._control.cache_clear()
    try:
        barrier()
    finally:
        distributed._control.cache_clear()
    assert waited == ["control"]
    assert made == [{"backend": "gloo", "timeout": CONTROL_PATIENCE}]


def _late() -> tuple[float, float]:
    if is_main():
        time.sleep(1)
    come = time.monotonic()
    barrier()
    return come, time.monotonic()


def test_a_barrier_waits_for_the_last(tmp_path):
    come, gone = zip(*run_ranks(_late, 2, tmp_path), strict=True)
    assert max(come) <= min(gone)  # one clock for all processes


def _meet(world_size: int, soft: int, hard: int) -> tuple[float, int] | str:
    """What ranks that may have so many descriptors add up to and have open, or the sentence that they leave with."""
    dist.destroy_process_group()  # of `run_ranks`, which has asked nobody
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    try:
        join("gloo", 60)
    except InputError as error:
        dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
        return str(error)
    total = torch.ones(1)
    dist.all_reduce(total)
    return float(total), len(os.listdir("/proc/self/fd"))


@pytest.mark.slow
def test_eight_ranks_under_a_low_limit_raise_it_or_say_one_sentence(tmp_path):
    for total, opened in run_ranks(_meet, 8, tmp_path, 8, 34, 4096):
        assert total == 8 and opened <= descriptors_needed(0, 8)
    for rank, sentence in enumerate(run_ranks(_meet, 8, tmp_path, 8, 34, 40)):
        needed = descriptors_needed(rank, 8)
        assert f"Rank {rank} of 8 on " in sentence and f"needs about {needed} open files" in sentence
        assert "may have 40; raise the hard limit there" in sentence


@pytest.mark.parametrize(
    ("rank", "count", "lazy", "needed"),
    [(5, 8, "", 18), (0, 8, "", 35), (5, 1024, "", 2050), (0, 1024, "", 4099), (5, 1024, "1", 50)],
)
def test_what_a_rank_needs_is_what_was_counted(monkeypatch, rank, count, lazy, needed):
    monkeypatch.setenv(rendezvous.LAZY, lazy)
    assert descriptors_needed(rank, count) == needed + rendezvous.OTHER_DESCRIPTORS


class Counted(dist.Store):
    """A connection to the store that counts what is sent there."""

    def __init__(self, store: dist.Store) -> None:
        super().__init__()
        self._to, self.sent = store, 0

    def has_extended_api(self) -> bool:
        return True

    def clone(self) -> Counted:
        return self


def _counting(name: str) -> Callable[..., Any]:
    def call(self: Counted, *arguments: Any) -> Any:
        self.sent += 1
        return getattr(self._to, name)(*arguments)

    return call


for name in ("set", "get", "add", "check", "wait", "compare_set", "multi_get", "multi_set", "append", "set_timeout"):
    setattr(Counted, name, _counting(name))


def _messages(folder: Path) -> tuple[int, float]:
    """What a rank sends to meet the others, and then in each period of its watchdog."""
    barrier()  # else a rank may still connect to one that has left
    dist.destroy_process_group()  # of `run_ranks`
    connect, made = dist.TCPStore, []
    dist.TCPStore = lambda *given, **named: made.append(Counted(connect(*given, **named))) or made[0]
    os.environ["MASTER_PORT"] = (folder / "port").read_text()
    join("gloo", 60)
    (store,) = made
    to_meet, watchdog.control_store = store.sent, lambda: rendezvous._store
    with watchdog.Watchdog(folder, 0.5) as watching:
        watching._last_beat = -1000.0  # a main thread that stands still makes nobody ask for more
        time.sleep(0.5)
        periods, before = watching._periods, store.sent
        while watching._periods < periods + 20:  # on a busy machine a period takes longer than it should
            time.sleep(0.05)
        return to_meet, (store.sent - before) / (watching._periods - periods)


@pytest.mark.parametrize(
    "world_size", [5, pytest.param(2, marks=pytest.mark.slow), pytest.param(16, marks=pytest.mark.slow)]
)
def test_a_rank_sends_as_much_to_the_store_however_many_ranks_there_are(tmp_path, world_size):
    (tmp_path / "port").write_text(str(free_port()))
    for to_meet, in_a_period in run_ranks(_messages, world_size, tmp_path, tmp_path):
        assert to_meet <= 12  # counted: 10 to 12; the last to come asks for all hosts at once
        assert in_a_period == pytest.approx(2, abs=0.3)  # the count may begin and end between two


@pytest.fixture
def networks(monkeypatch):
    """A host that reaches node0 by ib0 and all else by eth0."""
    for name in (rendezvous.NETWORK, *rendezvous.NODES):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    reached = {"node0": "ib0", "localhost": "lo", rendezvous.ANYWHERE: "eth0"}
    monkeypatch.setattr(rendezvous, "interface_to", reached.get)
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    return monkeypatch


@pytest.mark.parametrize(("master", "name"), [("node0", "ib0"), ("localhost", "eth0"), ("unknown", "eth0")])
def test_of_several_nodes_gloo_listens_where_the_master_is_reached(networks, master, name):
    """On the master's own node, whose name points to 127.0.1.1, where all else is reached."""
    networks.setenv("MASTER_ADDR", master)
    bind_to_the_masters_network()
    assert rendezvous.os.environ[rendezvous.NETWORK] == name


def test_the_users_network_stays_and_one_node_needs_none(networks):
    networks.setenv("MASTER_ADDR", "node0")
    networks.setenv(rendezvous.NETWORK, "bond0")
    bind_to_the_masters_network()
    assert rendezvous.os.environ[rendezvous.NETWORK] == "bond0"
    networks.delenv(rendezvous.NETWORK)
    networks.setenv("SLURM_JOB_NUM_NODES", "1")
    bind_to_the_masters_network()
    assert rendezvous.NETWORK not in rendezvous.os.environ


def test_an_interface_is_found_without_sending_anything():
    assert interface_to("127.0.0.1") == interface_to("127.0.1.1") == "lo"
    assert interface_to("no such host.invalid") is None


def _rate_where_so_many_should_be(count: int) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rendezvous, "world_size", lambda: count)
        try:
            return ",".join(rendezvous.all_reduce_rate(torch.device("cpu"), mebibytes=1))
        except InputError as error:
            return str(error)


def test_a_sum_that_is_not_that_of_all_ranks_names_the_node(tmp_path):
    assert run_ranks(_rate_where_so_many_should_be, 2, tmp_path, 2) == ["latency_ms,gigabytes_per_second"] * 2
    for number, words in enumerate(run_ranks(_rate_where_so_many_should_be, 2, tmp_path, 3)):
        assert words.startswith(f"An all-reduce over 3 ranks gave a wrong sum on rank {number} ("), words
        assert "exclude that node, or check its network" in words
