"""How often each weight is gathered in a step at ZeRO-3, by `partitioned_param_coordinator.py` of DeepSpeed 0.19.8.

A module's weights are gathered before it runs, forward and backward, and released after it. A layer that is
recomputed gathers them once more. If a step is one graph, DeepSpeed knows the order of modules from the previous step.
It then keeps weights that are needed again soon (`stage3_max_reuse_distance`, in elements of weights that run before).
Small tensors (`stage3_param_persistence_threshold`) are gathered once, after the update. With chunks the passes differ
from each other, so nothing is kept.
"""

from __future__ import annotations

import re
from collections import Counter

from diffcse_scale.planning.shape_networks import Networks, Parameter
from diffcse_scale.planning.sharding import Sharding
from diffcse_scale.recipe import Recipe

CHUNKED_PARTS = ("encoder", "discriminator", "rtd_head")  # parts with a backward pass per chunk
RUN_IN = ("encoder", "projection", "discriminator", "rtd_head")  # parts in the order in which they run
_LAYER = re.compile(r"\w+\.backbone\..*?\.\d+\.")


def passes(part: str, share: int, chunk: int | None) -> int:
    """Number of backward passes through a part per step."""
    return -(-share // chunk) if chunk is not None and part in CHUNKED_PARTS else 1


def gathers(
    networks: Networks, sharding: Sharding, recipe: Recipe, share: int, chunk: int | None
) -> list[tuple[int, bool]]:
    """For each parameter the number of gathers per step, and whether it is persistent (stays gathered)."""
    again = recipe.model.gradient_checkpointing
    if chunk is not None:
        return [(_in_chunks(p, passes(p.part, share, chunk), again), False) for p in networks.parameters]
    layers: Counter[str] = Counter()
    for parameter in networks.parameters:
        layers[layer_of(parameter)] += parameter.elements
    after, groups = _elements_after(networks), recipe.batch.length_groups
    found = []
    for parameter in networks.parameters:
        if is_whole := parameter.elements <= sharding.persistent:
            times = int(parameter.trained)
        else:
            layer = layers[layer_of(parameter)] if again and layer_of(parameter) else None
            times = _in_one_graph(parameter, after[parameter.name], layer, sharding, groups)
        found.append((times, is_whole))
    return found


def layer_of(parameter: Parameter) -> str:
    """Name of the backbone layer that a parameter belongs to; empty if none."""
    found = _LAYER.match(parameter.name)
    return found.group() if found else ""


def _in_chunks(parameter: Parameter, times: int, again: bool) -> int:
    visits = 3 if again and layer_of(parameter) else 2
    # plus the pass that reaches every parameter; the encoder also runs once per chunk without a graph
    return visits * times + visits + (times if parameter.part == "encoder" else 0)


def _in_one_graph(parameter: Parameter, after: int, layer: int | None, sharding: Sharding, groups: int) -> int:
    """Gathers of a weight that is followed by `after` elements; `layer`: elements of its layer if it is recomputed."""
    # elements that run before the weight is used again: forward to the end and back, plus recomputed layers
    if after * (2 if layer is None else 3) < sharding.reuse and groups == 1:
        return 1
    visits = 2 if layer is None or layer < sharding.reuse else 3
    return visits * (groups if parameter.part in CHUNKED_PARTS else 1)


def _elements_after(networks: Networks) -> dict[str, int]:
    """Number of elements that run after each parameter. Networks name their layers in the order in which they run."""
    after, total = {}, 0
    for parameter in sorted(networks.parameters, key=lambda p: RUN_IN.index(p.part))[::-1]:
        after[parameter.name] = total
        total += parameter.elements
    return after
