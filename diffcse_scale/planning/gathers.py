"""How often each weight is gathered in a step at ZeRO-3, by `partitioned_param_coordinator.py` of DeepSpeed 0.19.8.

A module's weights are gathered before it runs, forward and backward, and let go after it; also before a layer is
computed again. Where a step is one graph DeepSpeed knows from the step before what comes next: what is needed again
soon (`stage3_max_reuse_distance`, in elements of weights that run before) stays, and small tensors
(`stage3_param_persistence_threshold`) are gathered once, after the update. In chunks the passes differ from each
other, and nothing is kept.
"""

from __future__ import annotations

import re
from collections import Counter

from diffcse_scale.planning.shape_networks import Networks, Parameter
from diffcse_scale.planning.sharding import Sharding
from diffcse_scale.recipe import Recipe

CHUNKED_PARTS = ("encoder", "discriminator", "rtd_head")  # their backward pass is made once a chunk
RUN_IN = ("encoder", "projection", "discriminator", "rtd_head")  # order
_LAYER = re.compile(r"\w+\.backbone\..*?\.\d+\.")


def passes(part: str, share: int, chunk: int | None) -> int:
    """Backward passes a step through a part."""
    return -(-share // chunk) if chunk is not None and part in CHUNKED_PARTS else 1


def gathers(
    networks: Networks, sharding: Sharding, recipe: Recipe, share: int, chunk: int | None
) -> list[tuple[int, bool]]:
    """Gathers a step of each parameter, and whether it is one that stays whole."""
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
    """The layer of a backbone that it belongs to, by name; empty where it belongs to none."""
    found = _LAYER.match(parameter.name)
    return found.group() if found else ""


def _in_chunks(parameter: Parameter, times: int, again: bool) -> int:
    visits = 3 if again and layer_of(parameter) else 2
    # and the pass that reaches every parameter; the encoder also runs without a graph
    return visits * times + visits + (times if parameter.part == "encoder" else 0)


def _in_one_graph(parameter: Parameter, after: int, layer: int | None, sharding: Sharding, groups: int) -> int:
    """Of a weight after which so many elements run; `layer`: of its layer, where that is computed again."""
    # forward to the end and back, through layers that are computed again once more
    if after * (2 if layer is None else 3) < sharding.reuse and groups == 1:
        return 1
    visits = 2 if layer is None or layer < sharding.reuse else 3
    return visits * (groups if parameter.part in CHUNKED_PARTS else 1)


def _elements_after(networks: Networks) -> dict[str, int]:
    """For each parameter the elements of those that run after it; networks name their layers in the order they run."""
    after, total = {}, 0
    for parameter in sorted(networks.parameters, key=lambda p: RUN_IN.index(p.part))[::-1]:
        after[parameter.name] = total
        total += parameter.elements
    return after
