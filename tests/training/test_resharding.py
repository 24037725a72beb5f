"""A checkpoint fills an engine of another world size and ZeRO stage exactly.

The truth is what DeepSpeed's own `safe_get_full_*` said on the ranks that saved: every weight, both moments, bit for
bit. Sizes are chosen so that neither 2 nor 3 ranks share them equally.
"""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import deepspeed
import deepspeed.ops
import pytest
import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from torch import nn

from diffcse_scale.distributed import rank, world_size
from diffcse_scale.errors import InputError
from diffcse_scale.model.projection import make_projection
from diffcse_scale.recipe import load_recipe
from diffcse_scale.training.checkpoint import load_checkpoint, save_checkpoint
from diffcse_scale.training.engine import initialize
from diffcse_scale.training.resharding import load_resharded, pieces
from tests.ranks import run_ranks

ROWS, WIDTH = 12, 7
# persistence 0 and small sub-groups: else ZeRO-3 leaves small tensors whole and in one group
WAYS = {
    "0": {"stage": 0},
    "1": {"stage": 1},
    "2": {"stage": 2},
    "3": {"stage": 3, "stage3_param_persistence_threshold": 0, "sub_group_size": 100},
    "2 with overlap, round robin": {"stage": 2, "overlap_comm": True, "round_robin_gradients": True},
    "3 with tensors kept whole": {"stage": 3},
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


def _engine(way, autocast=False):
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed()
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


def _train(engine, step):
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


def _state(engine):
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


def _save(folder, ways, autocast):
    """Train three steps each way, save, and go on; then load on the same ranks."""
    truth = {}
    for way in ways:
        engine = _engine(way, autocast)
        for step in range(3):
            _train(engine, step)
        save_checkpoint(engine, folder / way, 3, {"best": {}}, keep=1)
        truth[way] = (_state(engine), [_train(engine, step) for step in (3, 4)])
        engine.destroy()
    return truth, _load(folder, ways, autocast)


def _load(folder, ways, autocast):
    """Load each checkpoint each way, and go on."""
    found = {}
    for saved, way in itertools.product(ways, ways):
        engine = _engine(way, autocast)
        load_checkpoint(engine, folder / saved)
        found[saved, way] = (_state(engine), [_train(engine, step) for step in (3, 4)])
        engine.destroy()
    return found


def _load_and_damage(folder, ways, autocast):
    """Load on other ranks; then what is said of a shard that was cut short, and of one that is gone."""
    found = _load(folder, ways, autocast)
    engine = _engine("2")
    (shard,) = (folder / "1" / "step-00000003").glob("zero_pp_rank_1_*")
    for damage in (lambda: shard.write_bytes(shard.read_bytes()[:1000]), shard.unlink):
        with pytest.raises(InputError, match=r"step-00000003 is damaged: \*zero_pp_rank_1_.* delete the folder"):
            torch.distributed.barrier()
            if rank() == 0:
                damage()
            torch.distributed.barrier()
            load_checkpoint(engine, folder / "1")
    return found


@pytest.mark.parametrize(
    ("ways", "autocast", "ranks"),
    [
        pytest.param(["0", "1", "2", "3"], False, (2, 1)),
        pytest.param(list(WAYS), False, (3, 2), marks=pytest.mark.slow),
        pytest.param(["0", "1", "2", "3"], True, (2, 3), marks=pytest.mark.slow),
    ],
)
def test_every_shape_gets_the_state_of_every_other(tmp_path, ways, autocast, ranks):
    saving = run_ranks(_save, ranks[0], tmp_path, tmp_path, ways, autocast)
    truth, found = saving[0][0], [loaded for _, loaded in saving]
    found += run_ranks(_load_and_damage, ranks[1], tmp_path, tmp_path, ways, autocast)
    for (saved, way), (state, losses) in [item for ours in found for item in ours.items()]:
        expected, expected_losses = truth[saved]
        for name in state.keys() & expected.keys():
            assert torch.equal(state[name], expected[name]), (saved, way, name)
        assert {"model words.weight", "adam step", "engine step"} < state.keys() & expected.keys()
        # sums over ranks are taken in another order; the second loss comes after a step with the moments
        assert losses == pytest.approx(expected_losses, rel=1e-2 if autocast else 1e-5), (saved, way)


def test_half_precision_at_zero_0_is_resumed_as_it_was_saved(tmp_path):
    engine = SimpleNamespace(
        zero_optimization_stage=lambda: 0, bfloat16_enabled=lambda: True, fp16_enabled=lambda: False
    )
    with pytest.raises(InputError, match=r"saved by 2 devices at ZeRO-1, .* resume it as it was saved"):
        load_resharded(engine, tmp_path, 1, 2)


@pytest.mark.parametrize("stage", [1, 3])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_the_pieces_of_all_ranks_are_every_element_once(stage, world_size):
    numels, paddings = {"a": 7, "b": 1, "c": 30}, [0, 0, 0]
    length = -(-sum(numels.values()) // world_size) + 1
    if stage == 3:
        length = sum(-(-numel // world_size) for numel in numels.values())
    seen = {name: [] for name in numels}
    for r in range(world_size):
        offset = 0
        for piece in pieces(stage, numels, paddings, r, world_size, length):
            assert piece.offset >= offset
            offset = piece.offset + piece.stop - piece.start
            seen[piece.name] += range(piece.start, piece.stop)
    assert seen == {name: list(range(numel)) for name, numel in numels.items()}


def test_paddings_between_parameters_are_left_out():
    # [a a a . b b | b . . .]: a's last element is followed by a padding, b goes over to rank 1
    cut = [list(pieces(1, {"a": 3, "b": 3}, [1, 0], r, 2, 6)) for r in range(2)]
    assert cut == [[("a", 0, 3, 0), ("b", 0, 2, 4)], [("b", 2, 3, 0)]]
