"""How long collectives take on nodes of several devices: hops times latency, plus bytes over bandwidth.

The formulas are the ones with which NCCL estimates its own algorithms (src/graph/tuning.cc). A ring passes through all
devices of a node before it goes on to the next node. There is one ring per network port of a node, and each carries
its part of the bytes, so a node sends through all its ports at once. The tree algorithm connects the devices of a node
in a chain and the nodes in a tree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Link:
    """A connection between two devices."""

    latency: float  # seconds per hop
    bandwidth: float  # bytes per second that a device sends


@dataclass(frozen=True)
class Exchange:
    """Time and traffic of one device in a collective."""

    seconds: float
    sent: float  # bytes

    def __add__(self, other: Exchange) -> Exchange:
        """Both exchanges, one after the other."""
        return Exchange(self.seconds + other.seconds, self.sent + other.sent)


@dataclass(frozen=True)
class Network:
    """Devices that take part in collectives.

    Attributes:
        per_node: devices per node; fewer than `devices` if there are several nodes.
        within: the link between devices of a node.
        between: the link of a device's own port out of its node.
    """

    devices: int
    per_node: int
    within: Link
    between: Link

    @property
    def nodes(self) -> int:
        """Number of nodes."""
        return math.ceil(self.devices / self.per_node)

    def group(self, devices: int) -> Network:
        """The network of `devices` consecutive devices. They are on one node if they fit."""
        return replace(self, devices=min(self.devices, devices))

    def node(self) -> Network:
        """The network of one node's devices."""
        return self.group(self.per_node)

    def one_of_each_node(self) -> Network:
        """The network of one device per node, those with the same port number."""
        return replace(self, devices=self.nodes, per_node=1)

    def all_gather(self, size: float) -> Exchange:
        """Gather `size` bytes on all devices. Each device has its part before."""
        share = size * (self.devices - 1) / self.devices
        return Exchange(self._ring_latency(1) + share / self._ring_bandwidth, share)

    def reduce_scatter(self, size: float) -> Exchange:
        """Sum `size` bytes over all devices. Each device gets its part."""
        return self.all_gather(size)  # the same hops in the other direction

    def all_reduce(self, size: float) -> Exchange:
        """Sum `size` bytes over all devices, for all of them, by a ring or a tree, whichever is faster."""
        if self.devices == 1:
            return Exchange(0.0, 0.0)
        sent = 2 * size * (self.devices - 1) / self.devices
        ring = self._ring_latency(2) + sent / self._ring_bandwidth
        chain = (min(self.devices, self.per_node) - 1) * self.within.latency
        tree = 2 * (chain + math.ceil(math.log2(self.nodes)) * self.between.latency) + 2 * size / self._ring_bandwidth
        return Exchange(min(ring, tree), sent)

    def two_level(self, size: float) -> Exchange:
        """An all-gather or reduce-scatter in two levels: between devices of the same number, and within each node."""
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
        out = self.per_node * self.between.bandwidth  # of all ports of a node together
        return out if self.per_node == 1 else min(self.within.bandwidth, out)
