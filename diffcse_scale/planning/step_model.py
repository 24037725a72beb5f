"""A training step as events: arithmetic on the device, collectives beside it, batches on the host.

A part's weights and gradients travel in buckets, and its arithmetic is cut in as many pieces. ZeRO-3 gathers the
buckets of the pieces to come while a piece is computed, as far ahead as live weights allow; gradients of a piece are
reduced while the next is computed, where the configuration overlaps them. All collectives share one network, one after
another. How many bytes travel is `communication.bytes_sent`'s answer; when they travel is decided here. Steps follow
each other, so that batches are made beside the step before, and the last of a few is looked at.
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

STEPS = 2  # of which the last is looked at
COMPUTING, UPDATING = "computing", "updating"  # what a device does by itself


@dataclass(frozen=True)
class Part:
    """Parameters that are trained and communicated together."""

    elements: float  # of all its weights
    trained: float  # of those with gradients
    flop: Flop  # of a device's share
    visits: int = 3  # of ZeRO-3's gathers in one graph; 1: weights stay from the pass forward to the one back


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
    recomputes: bool  # activations are computed again in backward
    sentences: int  # of the global batch
    keys: float  # numbers in the embeddings that a device sends to all others
    width: int  # of an embedding
    sent: dict[str, float]  # bytes by `communication.bytes_sent`

    @property
    def parts(self) -> list[Part]:
        """Those that are trained."""
        return [part for part in (self.discriminator, self.projection, self.encoder) if part is not None]


@dataclass(frozen=True)
class Ways:
    """How gradients, weights and embeddings are communicated.

    Attributes:
        overlap: gradients are reduced while the pass back goes on.
        bucket: gradients that travel in one collective, and ZeRO-3's weights.
        gathered: weights that travel in one collective after the update of ZeRO-1 and 2.
        ahead: weights that are gathered before they are needed, at most.
        group: devices in a row among which weights are gathered after a step's first gather (hpZ); 1: there are none.
        quantized: weights travel in 8 bits and gradients in 4, in two levels (ZeRO++).
        key_bytes: of a number of an embedding that travels; None: as many as the plan says.
        scatters: each rank gets the sum of its own embeddings' gradients, and no others.
        two_levels: embeddings travel between nodes first, and then within them.
        flag_hop: seconds of a hop where each step waits for a ring of hosts; 0: flags are read once a second.
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
    """What a device and its host can do."""

    rate: float  # operations a second
    memory: float  # bytes a second
    update_bytes: float  # that the optimizer reads and writes for a weight
    sentence: float  # seconds in which a host makes the order and lengths of one more sentence
    flags: float  # seconds a step for flags that are read once a second


@dataclass(frozen=True)
class StepTime:
    """What a step takes.

    Attributes:
        seconds: from the end of the step before to its own.
        waits: seconds of it by what it then waits for, along the longest chain of events; computing is one of these.
        busy: seconds in which the device computes or updates weights.
        sent: bytes that a device sends, by kind.
    """

    seconds: float
    waits: dict[str, float]
    busy: float
    sent: dict[str, float]

    @property
    def efficiency(self) -> float:
        """The part of the time in which the device is busy: 1 if nothing ever has to be waited for."""
        return self.busy / self.seconds

    @property
    def limit(self) -> str | None:
        """What the device waits for longest; None where it waits for nothing."""
        others = {kind: seconds for kind, seconds in self.waits.items() if kind not in (COMPUTING, UPDATING)}
        return max((kind for kind in others if others[kind] > 0), key=lambda kind: others[kind], default=None)


def simulate(work: Work, network: Network, device: Device, ways: Ways) -> StepTime:
    """The time of a step."""
    # one step with a byte for each number tells how many numbers travel
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
    """Arithmetic, and the weights that are gathered for it."""

    flop: float
    gathered: float = 0.0  # numbers
    network: Network | None = None  # among which they are


class _Steps:
    """Adds steps to a timeline, and to what they send.

    A step is first written down, in the order in which a host asks for it: pieces of arithmetic, and calls that
    exchange something. So it is known what can be gathered ahead.

    Args:
        widths: bytes of a number, of weights and of gradients; 1 where it is not there.
    """

    def __init__(self, work: Work, network: Network, device: Device, ways: Ways, widths: dict[str, float]) -> None:
        self.work, self.network, self.device, self.ways, self.widths = work, network, device, ways, widths
        self.timeline = Timeline()
        self.sent: dict[str, float] = defaultdict(float)
        self.busy = 0.0
        self.last: Event | None = None  # on the device
        self._batch: Event | None = None
        self._exchanged: Event | None = None  # the network's last
        self._before: list[Event] = []  # what the next arithmetic waits for

    @property
    def now(self) -> float:
        """The end of the last step."""
        return 0.0 if self.last is None else self.last.end

    def step(self) -> None:
        """One more."""
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
        """Do what was written down; weights are gathered before their piece, as many as may be there at once."""
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
        """Of a share of the device's sentences."""
        count = self._pieces_of(part)
        self._program += [self._piece(part, number, count, part.flop.forward * share) for number in range(count)]

    def _back(self, part: Part, share: float = 1.0) -> None:
        count = self._pieces_of(part)
        reduces = self.work.stage >= 2 or (self.work.stage == 1 and self.work.chunks == 1 and self.ways.overlap)
        visits = part.visits if self.work.chunks == 1 else 3  # chunks keep nothing
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
        """One of `count` equal pieces of a part; `flop` are those of all."""
        if self.work.stage != 3 or not gathers:
            return _Piece(flop / count)
        here = (id(part), number)
        network = self.network.group(self.ways.group) if here in self._whole_in_group else self.network
        if self.ways.group > 1:
            self._whole_in_group.add(here)
        return _Piece(flop / count, part.elements / count, network)

    def _project(self) -> None:
        self._forward(self.work.projection)
        # sums and squares of BatchNorm's 2 H numbers, and of its H
        self._program += [partial(self._sum, times * self.work.width) for times in (4, 2)]

    def _project_back(self) -> None:
        self._program += [partial(self._sum, times * self.work.width) for times in (2, 4)]
        self._back(self.work.projection)

    def _contrast(self) -> None:
        """Keys to all, and the sums of their gradients back."""
        numbers, network = self.work.keys * self.network.devices, self.network
        keys = numbers * (self.ways.key_bytes or self._width("embeddings"))
        gather = network.two_level if self.ways.two_levels else network.all_gather
        back = gather(keys) if self.ways.scatters else network.all_reduce(keys)
        self._program.append(lambda: self._wait(self._exchange("embeddings", gather(keys))))
        self._program.append(_Piece(sum(self.work.loss)))
        self._program.append(lambda: self._wait(self._exchange("embeddings", back)))

    # what they are made of

    def _compute(self, kind: str, seconds: float) -> None:
        self.busy += seconds if kind in (COMPUTING, UPDATING) else 0.0
        self.last = self.timeline.add(kind, seconds, "device", self._before)
        self._before = []

    def _wait(self, event: Event | None) -> None:
        """Have the device's next work wait for it."""
        if event is not None:
            self._before.append(event)

    def _exchange(self, kind: str, exchange: Exchange) -> Event:
        """A collective, once the device has done what it was asked for so far."""
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
        """The gradients of what was computed last."""
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
        """A few numbers to all, which are waited for: BatchNorm's, in float64."""
        self._wait(self._exchange("small sums", self.network.all_reduce(8.0 * numbers)))


def _buckets(elements: float, most: float) -> Iterator[float]:
    """Elements in as few equal buckets as hold them."""
    count = math.ceil(elements / most)
    yield from (elements / count for _ in range(count))
