"""What is planned to be sent against what ranks on CPUs send: every collective is counted, on 2 and 4 ranks.

The toy networks have so small tensors that DeepSpeed would keep them all; `ALL_TRAVEL` makes it do as with large ones.
"""

from __future__ import annotations

import pytest

from diffcse_scale.planning.communication import bytes_by_link, bytes_sent
from diffcse_scale.planning.shape_networks import Networks, parameters_of
from diffcse_scale.planning.sharding import read_sharding
from tests.support.ranks import run_ranks
from tests.support.sent_bytes import SENTENCES, Case, count

PARTITIONED = {"stage": 3, "stage3_param_persistence_threshold": 0}
ALL_TRAVEL = {**PARTITIONED, "stage3_max_reuse_distance": 0, "stage3_max_live_parameters": 0}
# what is not planned: padding to equal parts; that computing a layer again stops before its last module lets go, and an
# embedding that is still there when the next pass begins
CASES = {
    "ZeRO-0": (Case({"stage": 0}), 0.001),
    "ZeRO-1": (Case({"stage": 1}), 0.001),
    "ZeRO-2": (Case({"stage": 2}), 0.001),
    "ZeRO-2 in float32": (Case({"stage": 2}, autocast=False), 0.001),
    "ZeRO-2, chunks": (Case({"stage": 2}, chunk=2), 0.001),
    "ZeRO-3": (Case(ALL_TRAVEL), 0.001),
    "ZeRO-3 that keeps all": (Case(PARTITIONED), 0.001),
    "ZeRO-3 with small tensors whole": (Case({"stage": 3}), 0.001),
    "ZeRO-3, layers computed again": (Case(ALL_TRAVEL, checkpointing=True), 0.01),
    "ZeRO-3, chunks": (Case(ALL_TRAVEL, chunk=2), 0.02),
    "ZeRO-3, chunks of layers computed again": (Case(ALL_TRAVEL, chunk=1, rtd=False, checkpointing=True), 0.01),
    "ZeRO-3, LoRA on layers computed again": (Case(ALL_TRAVEL, rtd=False, checkpointing=True, lora=True), 0.05),
}


def planned(case: Case, ranks: int, share_by=bytes_sent, **options):
    """What the plan says, and the sharding."""
    recipe, model = case.recipe(), case.model()
    networks = Networks(model, None, parameters_of(model), 0, 32)
    sharding = read_sharding(case.config(), recipe, ranks, on_cpu=True, **options)
    return share_by(networks, sharding, recipe, SENTENCES // ranks, case.chunk)


def sent(counted, *names, dtypes=("bfloat16", "float32")):
    """Bytes of rings, of collectives of these names."""
    rings = {"all_reduce": 2, "all_gather_into_tensor": 1, "all_gather_single": 1, "all_to_all_single": 1}
    rings["reduce_scatter_tensor"] = 1
    return sum(
        rings[name] * (ranks - 1) / ranks * size
        for (name, dtype, ranks), size in counted.items()
        if name in names and dtype in dtypes
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_step_sends_what_is_planned(name, tmp_path):
    case, tolerance = CASES[name]
    found, plan = run_ranks(count, 2, tmp_path, case)[0], planned(case, 2)
    # keys, and their gradients back
    assert plan["embeddings"] == pytest.approx(sent(found, "all_gather_single", "all_to_all_single"), rel=1e-6)
    gradients = sent(found, "all_reduce", "reduce_scatter_tensor")
    assert plan["gradients"] == pytest.approx(gradients, rel=0.001)
    assert plan["weights"] == pytest.approx(sent(found, "all_gather_into_tensor"), rel=tolerance)


@pytest.mark.slow
def test_weights_that_are_whole_within_a_node_travel_between_nodes_once(tmp_path):
    """Two nodes of two ranks; both groups are rings of their own."""
    case = Case({**ALL_TRAVEL, "zero_hpz_partition_size": 2}, rtd=False)
    found = run_ranks(count, 4, tmp_path, case)[0]
    weights = {ranks: 0.0 for ranks in (2, 4)}
    for (name, _, ranks), size in found.items():
        if name == "all_gather_into_tensor":
            weights[ranks] += (ranks - 1) / ranks * size
    plan = planned(case, 4, devices_per_node=2)
    assert plan["weights"] == pytest.approx(sum(weights.values()), rel=0.001)
    links = planned(case, 4, bytes_by_link, devices_per_node=2)
    of_all = weights[4] + plan["gradients"] + plan["embeddings"]
    assert links == pytest.approx({"within a node": of_all / 2 + weights[2], "between nodes": of_all / 2}, rel=0.001)
