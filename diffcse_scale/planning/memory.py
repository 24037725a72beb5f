"""Memory in use on one device, moment by moment: the rehearsal plus a simulation of the engine.

The engine's part follows `runtime/zero/stage_1_and_2.py`, `stage3.py` and `engine.py` of DeepSpeed 0.19.8. On an
accelerator a buffer costs its allocated size. On a CPU it costs only the part that has been written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate, chain, groupby

from diffcse_scale.planning.moments import Moment
from diffcse_scale.planning.shape_networks import Networks, Parameter
from diffcse_scale.planning.sharding import Sharding

# Memory of a rank on a CPU besides its tensors: modules imported late, tokenizer, threads, collectives. Measured
# separately, with a model of a few thousand parameters (docs/results/plan.md).
PROCESS_BYTES = 74_000_000
# DeepSpeed 0.19.8, MEMORY_OPT_ALLREDUCE_SIZE: elements that stage 0 copies into one buffer before it reduces them
STAGE_0_BUCKET = 500_000_000


@dataclass
class Need:
    """The bytes that one device needs at its peak."""

    total: float = 0.0
    when: str = ""  # the part of the step with the peak
    lines: dict[str, float] = field(default_factory=dict)  # bytes by kind at the peak
    largest: dict[str, float] = field(default_factory=dict)  # the peak of each kind by itself, in bytes
    host: float = 0.0  # bytes per device that are offloaded to host memory

    def see(self, when: str, *parts: dict[str, float]) -> None:
        """Record a moment at which all `parts` are in memory."""
        lines: dict[str, float] = {}
        for part in parts:
            for name, size in part.items():
                lines[name] = lines.get(name, 0.0) + size
        for name, size in lines.items():
            self.largest[name] = max(size, self.largest.get(name, 0.0))
        if (total := sum(lines.values())) > self.total:
            self.total, self.when, self.lines = total, when, lines


def device_memory(moments: list[Moment], networks: Networks, sharding: Sharding) -> Need:
    """The peak over the start and one step, on the device that needs most."""
    chunked = any(moment.part == "encode again" for moment in moments)
    need, replay = Need(host=_host(networks, sharding)), _Engine(networks, sharding)
    _see_start(need, networks, sharding)
    standing = replay.standing()
    elements = {parameter.name: parameter.elements for parameter in networks.parameters}
    if chunked and sharding.stage == 3:
        # the first backward pass of a step must reach every parameter
        for transient in chain(*map(replay.arrive, replay.trained), replay.reduce()):
            need.see("touch", standing, replay.lines(), transient)
    arrived = False
    for moment in _as_of_two_chunks(moments):
        weights = replay.gathered(moment.part)
        need.see(moment.part, standing, weights, replay.lines(), _rehearsed(moment, moment.peak))
        # `replay` changes while these are iterated; `replay.lines()` reports its current state
        transients: Iterable[dict[str, float]] = ()
        if moment.gradient is not None:
            arrived = True
            transients = replay.arrive(elements[moment.gradient])
        elif arrived and (sharding.stage >= 2 or moment.part in ("step", "encode again")):
            arrived = False
            weights = replay.gathered(moment.part, only_lookup=True)
            transients = replay.reduce()
        for transient in transients:
            alive = _rehearsed(moment, moment.left)
            need.see(moment.part, standing, weights, replay.lines(), alive, transient)
    for transient in replay.update():
        need.see("update", standing, transient)
    return need


def _as_of_two_chunks(moments: list[Moment]) -> Iterator[Moment]:
    """Repeat the moments of each chunk once: in the second chunk the gradients of the first are in memory."""
    for part, group in groupby(moments, key=lambda moment: moment.part):
        yield from list(group) * (2 if part in ("chunk_terms", "encode again") else 1)


def _rehearsed(moment: Moment, alive: float) -> dict[str, float]:
    held = min(moment.held, alive)
    workspace = min(moment.workspace, alive - held)
    return {"embeddings": held, "loss workspace": workspace, "activations": alive - held - workspace}


def _see_start(need: Need, networks: Networks, sharding: Sharding) -> None:
    """Record the start, before the engine: a rank loads the model in float32, at ZeRO-3 only its part.

    With GPUs it loads into host memory, so only ranks on CPUs count.
    """
    if sharding.on_cpu:
        loaded = sharding.weights(networks.parameters) / (sharding.world_size if sharding.stage == 3 else 1)
        flat = sharding.weight_bytes * networks.elements(trained=True)
        lines = {"weights": loaded, "generator": 4.0 * networks.generator_elements}
        need.see("start", lines, {"communication buffers": flat, "process": PROCESS_BYTES})


def _host(networks: Networks, sharding: Sharding) -> float:
    """Offloaded bytes per device. On CPUs device and host are the same, so nothing is counted twice."""
    if sharding.on_cpu or sharding.stage == 0:
        return 0.0
    share = networks.elements(trained=True) / sharding.world_size
    # float32 weights and gradients, the optimizer's moments, and a buffer for arriving gradients
    host = share * (8 + sharding.moment_bytes + sharding.weight_bytes) if sharding.offload_optimizer else 0.0
    if sharding.offload_weights:
        host += sharding.weights(networks.parameters) / sharding.world_size
    return host


class _Engine:
    """The engine's memory on the rank that holds the largest share."""

    def __init__(self, networks: Networks, sharding: Sharding) -> None:
        self.networks, self.sharding = networks, sharding
        trained = [parameter for parameter in networks.parameters if parameter.trained]
        # the optimizer's groups: with and without weight decay
        self.groups = [[p for p in trained if p.dimensions > 1], [p for p in trained if p.dimensions <= 1]]
        self.trained = [parameter.elements for parameter in trained]
        self.share = sum(self.trained) / sharding.world_size
        self.whole_partition = sum(_largest_partition(group, sharding.world_size) for group in self.groups)
        # bytes allocated for reduction: one bucket per dtype that is sent, two with overlap
        sets = 2 if sharding.overlap and sharding.stage < 3 else 1
        self.buckets = sharding.reduce_bucket * sum({sharding.travels(parameter) for parameter in trained}) * sets
        self._gathered: dict[tuple[str, bool], float] = {}
        self.kept = 0  # elements of unreduced gradients, where backward left them or in the bucket
        self.touched = 0  # the most elements that the bucket has held since it was allocated
        self.partition = 0.0  # elements of reduced gradients
        self.is_reducing = False  # the bucket has been emptied but is still allocated

    def standing(self) -> dict[str, float]:
        """Memory that is in use from the first step to the last."""
        sharding, trained, width = self.sharding, sum(self.trained), self.sharding.weight_bytes
        on_device = sharding.on_cpu or not sharding.offload_optimizer
        whole = sharding.weights(self.networks.parameters)
        lines = {"weights": whole}
        if sharding.stage == 0:
            lines["optimizer"] = float(trained * (sharding.moment_bytes + (0 if width == 4 else 4)))
        elif on_device:
            # includes float32 weights of the rank's partition, even if the model's weights are float32 already
            lines["optimizer"] = (4.0 + sharding.moment_bytes) * self.share
        if sharding.stage == 3:
            is_away = sharding.offload_weights and not sharding.on_cpu
            lines["weights"] = 0.0 if is_away else whole / sharding.world_size
            if sharding.hpz > 1:
                lines["weights within a node"] = whole / sharding.hpz
            lines["gradients"] = width * self.share if on_device else 0.0
            lines["reduce buckets"] = float(width * self._fill() if sharding.on_cpu else self.buckets)
        elif sharding.offload_optimizer and sharding.stage > 0:
            lines["reduce buckets"] = float(width * max(self.trained))
            if sharding.on_cpu:
                lines["gradients"] = 4.0 * self.share
        generator = 4 if sharding.on_cpu else 2
        process = {"process": float(PROCESS_BYTES)} if sharding.on_cpu else {}
        return {**lines, "generator": float(generator * self.networks.generator_elements), **process}

    def gathered(self, part: str, only_lookup: bool = False) -> dict[str, float]:
        """Gathered weights at ZeRO-3. They are kept from forward to backward while at most `max_live` are gathered.

        Backward releases them module by module, except embeddings (`only_lookup`), because no gradient passes
        through their input.
        """
        if self.sharding.stage < 3 or part == "edit":
            return {}
        if (part, only_lookup) not in self._gathered:
            self._gathered[part, only_lookup] = self._whole(part, only_lookup)
        return {"gathered weights": self._gathered[part, only_lookup]}

    def _whole(self, part: str, only_lookup: bool) -> float:
        networks = {
            "step": ("encoder", "projection", "discriminator", "rtd_head"),
            "project": ("projection",),
            "batch_terms": ("projection",),
            "chunk_terms": ("discriminator", "rtd_head"),
        }.get(part, ("encoder",))
        weights = [p for p in self.networks.parameters if p.part in networks and p.lookup >= only_lookup]
        if not weights:
            return 0.0
        # as many as may stay; a single larger weight is gathered anyway
        elements, most = _elements(weights), max(self.sharding.max_live, *(p.elements for p in weights))
        return self.sharding.weights(weights) * min(1.0, most / elements)

    def lines(self) -> dict[str, float]:
        """Current bytes of gradients and buckets."""
        width = self.sharding.weight_bytes
        lines = {"gradients": width * self.partition}
        if self.sharding.stage < 2:
            lines["gradients"] += width * self.kept
        if (self.sharding.stage == 2 and self.kept) or (self.sharding.stage in (1, 2) and self.is_reducing):
            lines["reduce buckets"] = float(width * self.touched if self.sharding.on_cpu else self.buckets)
        return lines

    def arrive(self, elements: int) -> Iterator[dict[str, float]]:
        """Process a gradient that has arrived. Yields the other memory in use at every moment on the way."""
        if self.sharding.stage >= 2 and self.kept + elements > self.sharding.reduce_bucket:
            yield from self._flush()
        self.kept += elements
        self.touched = max(self.touched, min(self.kept, self.sharding.reduce_bucket))
        if self.sharding.stage >= 2:
            yield {}  # the gradient is in the bucket and also still where backward made it

    def reduce(self) -> Iterator[dict[str, float]]:
        """Reduce gradients at the end of a backward pass."""
        yield from self._flush()
        self.is_reducing, self.touched = False, 0

    def update(self) -> list[dict[str, float]]:
        """The moments of the optimizer's step."""
        sharding, trained, width = self.sharding, sum(self.trained), self.sharding.weight_bytes
        if sharding.stage == 0:
            return [{"gradients": float(trained * (4 if width == 4 else 6))}]
        if sharding.offload_optimizer and not sharding.on_cpu:
            return []
        gradients = {"gradients": width * self.partition} if sharding.stage < 3 else {}
        norm = {"communication buffers": 8.0 * max(self.trained) / (sharding.world_size if sharding.stage == 3 else 1)}
        moments = [{**gradients, **norm}, _sum(gradients, {"gradients": 4.0 * self.share})]
        if sharding.stage < 3 and sharding.world_size > 1 and sharding.on_cpu:
            # gloo gathers the new weights into a copy
            moments.append({"communication buffers": float(width * max(_elements(group) for group in self.groups))})
        return moments

    def _flush(self) -> Iterator[dict[str, float]]:
        """Reduce the bucket's content through a copy."""
        width, elements, copies = self.sharding.weight_bytes, self.kept, 1
        if self.sharding.stage == 0:
            elements = min(elements, STAGE_0_BUCKET)
        elif self.sharding.stage == 3:
            # parts of several tensors are rearranged in a copy; gloo reduce-scatters another copy
            is_alone = elements > self.sharding.reduce_bucket and elements % self.sharding.world_size == 0
            copies = (0 if is_alone else 1) + (1 if self.sharding.on_cpu else 0)
        yield {"communication buffers": float(copies * width * elements)} if self.sharding.world_size > 1 else {}
        if self.sharding.stage == 0:
            return
        self.is_reducing, self.kept = True, 0
        if self.sharding.stage < 3:
            # the rank's own partition in whole parameters: both neighbours hold a parameter on their border
            whole = self.whole_partition
            part = whole * elements / sum(self.trained) if self.sharding.on_cpu else whole
            if self.partition:
                # the gradients of a later chunk are copied before they are added to the existing ones
                yield {"gradients": float(width * part)}
            self.partition = min(float(whole), self.partition + part)
            yield {}

    def _fill(self) -> int:
        return min(sum(self.trained), self.sharding.reduce_bucket)


def _sum(*parts: dict[str, float]) -> dict[str, float]:
    total: dict[str, float] = {}
    for part in parts:
        for name, size in part.items():
            total[name] = total.get(name, 0.0) + size
    return total


def _elements(parameters: list[Parameter]) -> int:
    return sum(parameter.elements for parameter in parameters)


def _largest_partition(group: list[Parameter], world_size: int) -> int:
    """Elements of the largest of `world_size` equal partitions if every parameter in it is counted whole."""
    size = -(-_elements(group) // world_size)
    # a parameter counts in every partition from the first to the last that it overlaps
    changes, start = [0] * (world_size + 1), 0
    for parameter in group:
        changes[start // size] += parameter.elements
        start += parameter.elements
        changes[(start - 1) // size + 1] -= parameter.elements
    return max(accumulate(changes))
