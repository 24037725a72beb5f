"""DeepSpeed engines around a network of a few tensors, on the ranks of `run_ranks`, and all of their state."""

from __future__ import annotations

import deepspeed
import deepspeed.ops
import torch
from deepspeed.utils import groups, safe_get_full_fp32_param, safe_get_full_optimizer_state
from torch import nn

from diffcse_scale.distributed import rank, world_size
from diffcse_scale.engine.engine import initialize
from diffcse_scale.model.projection import make_projection
from diffcse_scale.recipe_file import load_recipe

ROWS, WIDTH = 12, 7
# persistence 0 and small sub-groups: else ZeRO-3 leaves small tensors whole and in one group
WAYS = {
    "0": {"stage": 0},
    "1": {"stage": 1},
    "2": {"stage": 2},
    "3": {"stage": 3, "stage3_param_persistence_threshold": 0, "sub_group_size": 100},
    "2 with overlap, round robin": {"stage": 2, "overlap_comm": True, "round_robin_gradients": True},
    "3 with tensors kept whole": {"stage": 3},
    "3 within nodes": {"stage": 3, "stage3_param_persistence_threshold": 0, "zero_hpz_partition_size": 2},
    "2 with offload": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
    "3 with offload": {"stage": 3, "offload_optimizer": {"device": "cpu"}},
}


class Network(nn.Module):
    """An embedding, a projection with BatchNorm, a frozen parameter, and one that never gets a gradient."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.words = nn.Embedding(11, WIDTH)
        self.frozen = nn.Parameter(torch.randn(WIDTH), requires_grad=False)
        self.projection = make_projection("batchnorm", WIDTH, initializer_range=0.5)
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, ids):
        hidden = self.words(ids) + self.frozen
        return (self.projection(hidden) - torch.sin(3 * hidden)).square().mean()


def small_engine(way, autocast=False):
    """The engine of one of `WAYS` around a `Network`."""
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed()
    groups._ZERO_PARAM_INTRA_PARALLEL_GROUP = None  # an engine before may have had one, and would leave it to this one
    config = {
        "train_batch_size": ROWS,
        "train_micro_batch_size_per_gpu": ROWS // world_size(),
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 1.0,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": WAYS[way],
        "torch_autocast": {"enabled": autocast, "dtype": "bfloat16"},
    }
    return initialize(Network(), load_recipe("quickstart", ["optimizer.weight_decay=0.1"]), config)


def train_step(engine, step):
    """One step on the global batch of `step`; returns the global loss."""
    ids = torch.randint(11, (ROWS,), generator=torch.Generator().manual_seed(step))
    for group in engine.optimizer.param_groups:
        group["lr"] = 0.02
    loss = engine(ids.tensor_split(world_size())[rank()])
    engine.backward(loss)
    engine.step()
    total = loss.detach().clone()
    torch.distributed.all_reduce(total)
    return float(total) / world_size()


def whole_state(engine):
    """Everything that training goes on from, whole."""
    state = {f"buffer {name}": buffer.clone() for name, buffer in engine.module.named_buffers()}
    with deepspeed.zero.GatheredParameters(list(engine.module.parameters())):  # does nothing below ZeRO-3
        state |= {f"model {name}": p.detach().clone() for name, p in engine.module.named_parameters()}
    if engine.zero_optimization_stage() in (1, 2):
        # else the getters know nothing before a step, and after it only the first parameter group
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()
    # the getters are mistaken about round robin: there only the weights and the steps to come can tell
    round_robin = "round_robin_gradients" in engine.config["zero_optimization"]
    for name, p in engine.module.named_parameters():
        if not p.requires_grad or round_robin:
            continue
        for key in ("exp_avg", "exp_avg_sq"):
            if engine.zero_optimization_stage() == 0:
                state[f"{key} {name}"] = engine.optimizer.state[p][key].clone()
            else:
                state[f"{key} {name}"] = safe_get_full_optimizer_state(p, key)
        if engine.zero_optimization_stage() > 0:
            state[f"master {name}"] = safe_get_full_fp32_param(p)
    inner = getattr(engine.optimizer, "optimizer", engine.optimizer)
    state["adam step"] = torch.tensor(sorted({float(s["step"]) for s in inner.state.values()}))
    return state | {"engine step": torch.tensor(engine.global_steps)}
