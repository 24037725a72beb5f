"""The simulated step at limits that are known without it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from diffcse_scale.model.arithmetic import Flop
from diffcse_scale.planning.network import Link, Network
from diffcse_scale.planning.step_model import Device, Part, Ways, Work, simulate
from diffcse_scale.planning.timeline import Timeline, critical

FREE = Link(0.0, float("inf"))
BARE = Device(rate=1e12, memory=float("inf"), update_bytes=0.0, sentence=0.0, flags=0.0)
ENCODER, PROJECTION = Part(4e6, 4e6, Flop(1e9, 2e9)), Part(1e6, 1e6, Flop(1e8, 2e8))
WORK = Work(
    encoder=ENCODER,
    projection=PROJECTION,
    discriminator=None,
    generator=0.0,
    loss=Flop(1e8, 2e8),
    stage=0,
    chunks=1,
    recomputes=False,
    sentences=512,
    keys=0.0,
    width=0,
    sent={"weights": 0.0, "gradients": 0.0},
)
COMPUTED = 3.6e9 / BARE.rate


def network(devices: int, per_node: int = 8, within: Link = FREE, between: Link = FREE) -> Network:
    return Network(devices, per_node, within, between)


@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("chunks", [1, 4])
def test_on_a_network_that_takes_no_time_a_device_is_always_busy(stage, chunks):
    step = simulate(replace(WORK, stage=stage, chunks=chunks), network(8), BARE, Ways(bucket=1e6))
    assert step.efficiency == pytest.approx(1.0, rel=1e-9) and step.limit is None
    again = 1e9 if chunks > 1 else 0.0  # the encoder's first pass
    assert step.seconds == pytest.approx((3.6e9 + again) / BARE.rate, rel=1e-9)


@pytest.mark.parametrize("devices", [2, 8])
def test_gradients_that_are_waited_for_take_what_a_ring_takes(devices):
    """Latency and bandwidth: 2 (W - 1) hops, 2 (W - 1) / W of the bytes."""
    link = Link(1e-6, 1e9)
    part = (devices - 1) / devices
    work = replace(WORK, sent={"weights": 0.0, "gradients": 2 * 5e6 * 4 * part})
    step = simulate(work, network(devices, within=link), BARE, Ways())
    # encoder and projection by themselves, each in one bucket; a tree is as good as a ring where there is one node
    expected = sum(2 * ((devices - 1) * 1e-6 + part * size * 4 / 1e9) for size in (4e6, 1e6))
    # two rounds of no keys, four all-reduces of no sums, and one of the norm
    small = 12 * (devices - 1) * 1e-6 + 2 * 8 / 1e9 * part
    assert step.seconds == pytest.approx(COMPUTED + expected + small, rel=1e-6)
    assert step.limit == "gradients"


def test_time_grows_linearly_with_latency():
    work = replace(WORK, sent={"weights": 0.0, "gradients": 4e7})

    def seconds(hop: float) -> float:
        return simulate(work, network(64, between=Link(hop, 5e10), within=Link(hop, 4e11)), BARE, Ways()).seconds

    first, second, third = seconds(1e-3), seconds(2e-3), seconds(3e-3)
    assert third - second == pytest.approx(second - first, rel=1e-9) and second > first


def test_gathers_hide_behind_arithmetic_unless_they_take_longer():
    """ZeRO-3 on a slow link: the longer of the two chains is the step."""
    part = 7 / 8
    gathered = 2 * 5e6  # forward and back
    work = replace(WORK, stage=3, sent={"weights": gathered * part, "gradients": 0.0})
    ways = Ways(overlap=True, bucket=1e5, ahead=1e6)

    def step(bandwidth: float):
        return simulate(work, network(8, within=Link(0.0, bandwidth)), BARE, ways)

    assert step(1e12).efficiency > 0.97
    slow = step(1e9)
    assert slow.seconds == pytest.approx(gathered * part / 1e9, rel=0.05) and slow.limit == "weights"


def test_with_weights_whole_within_a_node_only_the_first_gather_crosses_nodes():
    part = 63 / 64
    work = replace(WORK, stage=3, recomputes=True, sent={"weights": 3 * 5e6 * part, "gradients": 0.0})
    slow = network(64, between=Link(0.0, 1e6))
    plain, within = (simulate(work, slow, BARE, Ways(group=group)).seconds for group in (1, 8))
    assert plain / within == pytest.approx(3, rel=0.01)


@pytest.mark.parametrize("group", [4, 8, 16])
def test_weights_that_are_whole_in_a_group_travel_between_the_nodes_that_it_spans(group):
    part = 63 / 64
    work = replace(WORK, stage=3, recomputes=True, sent={"weights": 3 * 5e6 * part, "gradients": 0.0})
    port, within = 1e6, 1e9
    step = simulate(work, network(64, 4, Link(0.0, within), Link(0.0, port)), BARE, Ways(group=group))
    again = within if group <= 4 else 4 * port
    expected = 5e6 * (part / (4 * port) + 2 * (group - 1) / group / again)
    assert step.seconds == pytest.approx(expected, rel=0.01)


def test_flags_and_batches_are_waited_for_as_they_were():
    ring = simulate(WORK, network(1024), BARE, Ways(flag_hop=25e-6))
    assert ring.waits["flags"] == pytest.approx(2 * 1023 * 25e-6) and ring.limit == "flags"
    late = simulate(WORK, network(8), replace(BARE, sentence=1e-3), Ways())
    assert late.seconds == pytest.approx(512 * 1e-3) and late.limit == "batches"


def test_ring_tree_and_two_levels():
    slow, fast = Link(10e-6, 50e9), Link(3e-6, 450e9)
    many = network(1024, within=fast, between=slow)
    # 127 hops between nodes and 896 within; eight ports send at once
    assert many.all_gather(1e9).seconds == pytest.approx(127 * 10e-6 + 896 * 3e-6 + 1023 / 1024 * 1e9 / 400e9)
    assert many.all_gather(1e9).sent == pytest.approx(1023 / 1024 * 1e9)
    assert many.all_reduce(8.0).seconds == pytest.approx(2 * (7 * 3e-6 + 7 * 10e-6), rel=1e-3)
    two = 127 * 10e-6 + 127 / 128 * 1e9 / 8 / 50e9 + 7 * 3e-6 + 7 / 8 * 1e9 / 450e9
    assert many.two_level(1e9).seconds == pytest.approx(two)
    assert network(1).all_reduce(1e9).seconds == 0 and network(1).all_gather(1e9).sent == 0


def test_the_longest_chain_of_waits_is_the_step():
    line = Timeline()
    first = line.add("a", 2.0, "device", [])
    sent = line.add("b", 5.0, "network", [first])
    beside = line.add("c", 3.0, "device", [first])
    late = line.add("d", 1.0, "network", [])  # the network does one thing after another
    last = line.add("e", 1.0, "device", [beside, sent])
    assert (late.begin, last.begin, last.end) == (7.0, 7.0, 8.0)
    assert critical(last, 0.0) == {"a": 2.0, "b": 5.0, "e": 1.0}
    assert critical(last, 1.5) == {"a": 0.5, "b": 5.0, "e": 1.0}
