"""How long collectives take on nodes of several devices: hops times their latency, and bytes over bandwidth.

The formulas are those by which NCCL estimates its own algorithms (src/graph/tuning.cc). A ring passes through all
devices of a node before it goes on to the next; there are as many rings as a node has network ports, each with its
part of the bytes, so that a node sends through all its ports at once. A tree has the devices of a node in a chain and
the nodes in a tree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Link:
    """What connects a device with another."""

    latency: float  # seconds a hop
    bandwidth: float  # bytes a second that a device sends


@dataclass(frozen=True)
class Exchange:
    """What one device does in a collective."""

    seconds: float
    sent: float  # bytes

    def __add__(self, other: Exchange) -> Exchange:
        """One after the other."""
        return Exchange(self.seconds + other.seconds, self.sent + other.sent)


@dataclass(frozen=True)
class Network:
    """Devices that meet in collectives.

    Attributes:
        per_node: devices of a node; fewer than `devices` where there are several nodes.
        between: of a device's own port out of its node.
    """

    devices: int
    per_node: int
    within: Link
    between: Link

    @property
    def nodes(self) -> int:
        """How many."""
        return math.ceil(self.devices / self.per_node)

    def group(self, devices: int) -> Network:
        """So many that follow each other, by themselves: of one node as far as they fit into it."""
        return replace(self, devices=min(self.devices, devices))

    def node(self) -> Network:
        """The devices of one node by themselves."""
        return self.group(self.per_node)

    def one_of_each_node(self) -> Network:
        """A device of each node: those that share a port's number."""
        return replace(self, devices=self.nodes, per_node=1)

    def all_gather(self, size: float) -> Exchange:
        """`size` bytes, of which each device has its part, to all."""
        share = size * (self.devices - 1) / self.devices
        return Exchange(self._ring_latency(1) + share / self._ring_bandwidth, share)

    def reduce_scatter(self, size: float) -> Exchange:
        """The sum of all devices' `size` bytes, a part to each."""
        return self.all_gather(size)  # the same hops, the other way round

    def all_reduce(self, size: float) -> Exchange:
        """The sum of all devices' `size` bytes to all, by a ring or a tree, whichever is faster."""
        if self.devices == 1:
            return Exchange(0.0, 0.0)
        sent = 2 * size * (self.devices - 1) / self.devices
        ring = self._ring_latency(2) + sent / self._ring_bandwidth
        chain = (min(self.devices, self.per_node) - 1) * self.within.latency
        tree = 2 * (chain + math.ceil(math.log2(self.nodes)) * self.between.latency) + 2 * size / self._ring_bandwidth
        return Exchange(min(ring, tree), sent)

    def two_level(self, size: float) -> Exchange:
        """An all-gather or reduce-scatter in two: between devices of the same number, and within each node."""
        if self.nodes == 1:
            return self.all_gather(size)
        return self.one_of_each_node().all_gather(size / self.per_node) + self.node().all_gather(size)

    def _ring_latency(self, rounds: int) -> float:
        across = self.nodes - 1
        return rounds * (across * self.between.latency + (self.devices - 1 - across) * self.within.latency)

    @property
    def _ring_bandwidth(self) -> float:
        if self.nodes == 1:
            return self.within.bandwidth
        out = self.per_node * self.between.bandwidth  # of all ports of a node
        return out if self.per_node == 1 else min(self.within.bandwidth, out)
