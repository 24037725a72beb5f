"""Simulates a training step as events: computation on the device, collectives beside it, batches on the host.

A part's weights and gradients are sent in buckets, and its computation is cut into as many pieces. While a piece is
computed, ZeRO-3 gathers the buckets of the next pieces, as far ahead as the limit on live weights allows. If the
configuration overlaps communication, a piece's gradients are reduced while the next piece is computed. All collectives
share one network and run one after another. `communication.bytes_sent` gives the number of bytes; this module decides
when they are sent. Batches are made during the previous step, so a few steps are simulated and the last one counts.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from diffcse_scale.model.arithmetic import Flop
from diffcse_scale.planning.network import Exchange, Network
from diffcse_scale.planning.timeline import Event, Timeline, critical

STEPS = 2  # simulated steps, of which the last counts
COMPUTING, UPDATING = "computing", "updating"  # kinds of events in which the device is busy


@dataclass(frozen=True)
class Part:
    """Parameters that are trained and communicated together."""

    elements: float  # in all weights
    trained: float  # elements in weights with gradients
    flop: Flop  # of a device's share
    visits: int = 3  # ZeRO-3's gathers per weight in one graph; 1: weights stay from forward to backward


@dataclass(frozen=True)
class Work:
    """The work of a device in a step."""

    encoder: Part
    projection: Part
    discriminator: Part | None
    generator: float  # operations
    loss: Flop
    stage: int
    chunks: int  # passes of the encoder; 1: one graph
    recomputes: bool  # activations are recomputed in backward
    sentences: int  # in the global batch
    keys: float  # elements of the embeddings that a device sends to all others
    width: int  # of an embedding
    sent: dict[str, float]  # bytes from `communication.bytes_sent`

    @property
    def parts(self) -> list[Part]:
        """The trained parts in the order of the backward pass."""
        return [part for part in (self.discriminator, self.projection, self.encoder) if part is not None]


@dataclass(frozen=True)
class Ways:
    """How gradients, weights and embeddings are communicated.

    Attributes:
        overlap: gradients are reduced while the backward pass continues.
        bucket: elements per collective for gradients and for ZeRO-3's weights.
        gathered: elements per collective for updated weights of ZeRO-1 and 2.
        ahead: the most elements of weights that may be gathered before they are needed.
        group: consecutive devices among which weights are gathered after a step's first gather (hpZ); 1: no groups.
        quantized: weights are sent in 8 bits and gradients in 4, in two levels (ZeRO++).
        key_bytes: bytes per element of embeddings that are sent; None: as in the plan.
        scatters: each rank gets only the sum of its own embeddings' gradients.
        two_levels: embeddings are sent between nodes first and then within them.
        flag_hop: seconds per hop if each step waits for a ring of hosts; 0: flags are read once a second.
    """

    overlap: bool = False
    bucket: float = 5e7
    gathered: float = 5e8
    ahead: float = 1e9
    group: int = 1
    quantized: bool = False
    key_bytes: float | None = None
    scatters: bool = True
    two_levels: bool = False
    flag_hop: float = 0.0


@dataclass(frozen=True)
class Device:
    """Speeds of a device and its host."""

    rate: float  # operations per second
    memory: float  # bytes per second
    update_bytes: float  # bytes that the optimizer reads and writes per weight
    sentence: float  # seconds that a host needs per sentence to make order and lengths
    flags: float  # seconds per step for flags that are read once a second


@dataclass(frozen=True)
class StepTime:
    """The time of a step and the bytes that it sends.

    Attributes:
        seconds: from the end of the previous step to the end of this one.
        waits: seconds along the critical path, by kind of event; computing is one of the kinds.
        busy: seconds in which the device computes or updates weights.
        sent: bytes that a device sends, by kind.
    """

    seconds: float
    waits: dict[str, float]
    busy: float
    sent: dict[str, float]

    @property
    def efficiency(self) -> float:
        """Share of the time in which the device is busy: 1 if it never waits."""
        return self.busy / self.seconds

    @property
    def limit(self) -> str | None:
        """The kind of event that the device waits for longest; None if it never waits."""
        others = {kind: seconds for kind, seconds in self.waits.items() if kind not in (COMPUTING, UPDATING)}
        return max((kind for kind in others if others[kind] > 0), key=lambda kind: others[kind], default=None)


def simulate(work: Work, network: Network, device: Device, ways: Ways) -> StepTime:
    """Simulate a step."""
    # a step with one byte per element tells how many elements are sent, and so the bytes per element
    once = _Steps(work, network, device, replace(ways, group=1, quantized=False, key_bytes=None), {})
    once.step()
    widths = {kind: work.sent[kind] / sent for kind, sent in once.sent.items() if sent and kind in work.sent}
    steps = _Steps(work, network, device, ways, widths)
    for _ in range(STEPS):
        before, steps.sent, steps.busy = steps.now, defaultdict(float), 0.0
        steps.step()
    assert steps.last is not None
    waits = critical(steps.last, before)
    return StepTime(steps.now - before, waits, steps.busy, dict(steps.sent))


@dataclass(frozen=True)
class _Piece:
    """A piece of computation, and the weights that are gathered for it."""

    flop: float
    gathered: float = 0.0  # elements
    network: Network | None = None  # the devices among which they are gathered


class _Steps:
    """Adds steps to a timeline and counts the bytes that they send.

    A step is first written as a program in the order in which the host launches it: pieces of computation, and calls
    that exchange data. The program shows which weights can be gathered ahead.

    Args:
        widths: bytes per element by kind (weights, gradients, ...); 1 for a kind that is missing.
    """

    def __init__(self, work: Work, network: Network, device: Device, ways: Ways, widths: dict[str, float]) -> None:
        self.work, self.network, self.device, self.ways, self.widths = work, network, device, ways, widths
        self.timeline = Timeline()
        self.sent: dict[str, float] = defaultdict(float)
        self.busy = 0.0
        self.last: Event | None = None  # on the device
        self._batch: Event | None = None
        self._exchanged: Event | None = None  # the last one on the network
        self._before: list[Event] = []  # the events that the next computation waits for

    @property
    def now(self) -> float:
        """The end of the last step."""
        return 0.0 if self.last is None else self.last.end

    def step(self) -> None:
        """Simulate one more step."""
        work, device = self.work, self.device
        self._program: list[_Piece | Callable[[], None]] = []
        self._whole_in_group: set[tuple[int, int]] = set()
        self._batch = self.timeline.add("batches", work.sentences * device.sentence, "host", [self._batch])
        self._before.append(self._batch)
        if work.chunks == 1:
            self._one_graph()
        else:
            self._chunked()
        if work.stage == 0 or (work.stage == 1 and (work.chunks > 1 or not self.ways.overlap)):
            for part in work.parts:
                self._program += [partial(self._reduce, size) for size in _buckets(part.trained, self.ways.bucket)]
        self._play()
        self._wait(self._exchanged)
        self._sum(1)  # the norm of the gradient
        owned = sum(part.trained for part in work.parts) / (self.network.devices if work.stage else 1)
        self._compute(UPDATING, owned * device.update_bytes / device.memory)
        if work.stage in (1, 2):
            for elements in _buckets(sum(part.trained for part in work.parts), self.ways.gathered):
                self._exchange("weights", self.network.all_gather(elements * self._width("weights")))
            self._wait(self._exchanged)
        ring = 2 * (self.network.devices - 1) * self.ways.flag_hop
        self._compute("flags", ring or device.flags)

    def _play(self) -> None:
        """Run the program. Weights are gathered before their piece, up to the limit on live weights."""
        pieces = [entry for entry in self._program if isinstance(entry, _Piece)]
        arriving: deque[tuple[Event | None, float]] = deque()
        there, issued = 0.0, 0
        for entry in self._program:
            if not isinstance(entry, _Piece):
                entry()
                continue
            while issued < len(pieces) and (not arriving or there + pieces[issued].gathered <= self.ways.ahead):
                arriving.append((self._gather(pieces[issued]), pieces[issued].gathered))
                there += pieces[issued].gathered
                issued += 1
            event, gathered = arriving.popleft()
            self._wait(event)
            self._compute(COMPUTING, entry.flop / self.device.rate)
            there -= gathered

    # the parts of a step

    def _one_graph(self) -> None:
        work = self.work
        self._forward(work.encoder)
        self._project()
        self._program.append(_Piece(work.generator))
        if work.discriminator is not None:
            self._forward(work.discriminator)
        self._contrast()
        if work.discriminator is not None:
            self._back(work.discriminator)
        self._project_back()
        self._back(work.encoder)

    def _chunked(self) -> None:
        work, share = self.work, 1 / self.work.chunks
        for _ in range(work.chunks):
            self._forward(work.encoder, share)
        self._project()
        if work.stage == 3:  # the first pass reaches every parameter
            for part in work.parts:
                self._forward(part, 0.0)
            for part in work.parts:
                self._back(part, 0.0)
        if work.discriminator is not None:
            for _ in range(work.chunks):
                self._program.append(_Piece(work.generator * share))
                self._forward(work.discriminator, share)
                self._back(work.discriminator, share)
        self._contrast()
        self._project_back()
        for _ in range(work.chunks):
            self._forward(work.encoder, share)
            self._back(work.encoder, share)

    def _forward(self, part: Part, share: float = 1.0) -> None:
        """Add the forward pass for a share of the device's sentences."""
        count = self._pieces_of(part)
        self._program += [self._piece(part, number, count, part.flop.forward * share) for number in range(count)]

    def _back(self, part: Part, share: float = 1.0) -> None:
        count = self._pieces_of(part)
        reduces = self.work.stage >= 2 or (self.work.stage == 1 and self.work.chunks == 1 and self.ways.overlap)
        visits = part.visits if self.work.chunks == 1 else 3  # with chunks no gathered weights are kept
        for number in reversed(range(count)):
            again = visits > 1
            if self.work.recomputes:
                self._program.append(self._piece(part, number, count, part.flop.forward * share, again))
                again = visits > 2
            self._program.append(self._piece(part, number, count, part.flop.backward * share, again))
            if reduces:
                self._program.append(partial(self._reduce, part.trained / count))

    def _pieces_of(self, part: Part) -> int:
        return max(1, math.ceil((part.elements if self.work.stage == 3 else part.trained) / self.ways.bucket))

    def _piece(self, part: Part, number: int, count: int, flop: float, gathers: bool = True) -> _Piece:
        """One of `count` equal pieces of a part. `flop` is the total of all pieces."""
        if self.work.stage != 3 or not gathers:
            return _Piece(flop / count)
        here = (id(part), number)
        network = self.network.group(self.ways.group) if here in self._whole_in_group else self.network
        if self.ways.group > 1:
            self._whole_in_group.add(here)
        return _Piece(flop / count, part.elements / count, network)

    def _project(self) -> None:
        self._forward(self.work.projection)
        # BatchNorm's sums and squares of 2 H numbers, then of H numbers
        self._program += [partial(self._sum, times * self.work.width) for times in (4, 2)]

    def _project_back(self) -> None:
        self._program += [partial(self._sum, times * self.work.width) for times in (2, 4)]
        self._back(self.work.projection)

    def _contrast(self) -> None:
        """Add the exchange of keys, the loss, and the exchange of the keys' gradients."""
        numbers, network = self.work.keys * self.network.devices, self.network
        keys = numbers * (self.ways.key_bytes or self._width("embeddings"))
        gather = network.two_level if self.ways.two_levels else network.all_gather
        back = gather(keys) if self.ways.scatters else network.all_reduce(keys)
        self._program.append(lambda: self._wait(self._exchange("embeddings", gather(keys))))
        self._program.append(_Piece(sum(self.work.loss)))
        self._program.append(lambda: self._wait(self._exchange("embeddings", back)))

    # the operations that passes consist of

    def _compute(self, kind: str, seconds: float) -> None:
        self.busy += seconds if kind in (COMPUTING, UPDATING) else 0.0
        self.last = self.timeline.add(kind, seconds, "device", self._before)
        self._before = []

    def _wait(self, event: Event | None) -> None:
        """Make the device's next work wait for `event`."""
        if event is not None:
            self._before.append(event)

    def _exchange(self, kind: str, exchange: Exchange) -> Event:
        """Add a collective that starts after the device's work so far."""
        self.sent[kind] += exchange.sent
        self._exchanged = self.timeline.add(kind, exchange.seconds, "network", [self.last])
        return self._exchanged

    def _width(self, kind: str) -> float:
        return self.widths.get(kind, 1.0)

    def _gather(self, piece: _Piece) -> Event | None:
        if piece.network is None:
            return None
        size = piece.gathered * (1.0 if self.ways.quantized else self._width("weights"))
        return self._exchange("weights", piece.network.all_gather(size))

    def _reduce(self, elements: float) -> None:
        """Reduce the gradients of the last computation."""
        if self.work.stage < 3:
            exchange = self.network.all_reduce(elements * self._width("gradients"))
        elif self.ways.quantized:
            exchange = self.network.two_level(elements * 0.5)
        else:
            exchange = self.network.reduce_scatter(elements * self._width("gradients"))
        event = self._exchange("gradients", exchange)
        if not self.ways.overlap:
            self._wait(event)

    def _sum(self, numbers: int) -> None:
        """All-reduce a few float64 numbers, such as BatchNorm's, and wait for them."""
        self._wait(self._exchange("small sums", self.network.all_reduce(8.0 * numbers)))


def _buckets(elements: float, most: float) -> Iterator[float]:
    """Split elements into the fewest equal buckets of at most `most`."""
    count = math.ceil(elements / most)
    yield from (elements / count for _ in range(count))
