"""A checkpoint fills an engine of another world size and ZeRO stage exactly.

The truth is what DeepSpeed's own `safe_get_full_*` said on the ranks that saved: every weight, both moments, bit for
bit. Sizes are chosen so that neither 2 nor 3 ranks share them equally.
"""

from __future__ import annotations

import itertools
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

from diffcse_scale.checkpoints.checkpoint import Checkpoints
from diffcse_scale.checkpoints.resharding import MODEL_FILE, load_resharded, load_weights, pieces
from diffcse_scale.distributed import rank
from diffcse_scale.foundation.errors import InputError
from tests.support.ranks import run_ranks
from tests.support.small_engine import WAYS, WIDTH, Network, small_engine, train_step, whole_state

STEP_1 = "step-00000001"


def _save(folder, ways, autocast):
    """Train three steps each way, save, and go on; then load on the same ranks."""
    truth = {}
    for way in ways:
        engine = small_engine(way, autocast)
        for step in range(3):
            train_step(engine, step)
        Checkpoints(engine, folder / way, background=False).save(3, {"best": {}})
        truth[way] = (whole_state(engine), [train_step(engine, step) for step in (3, 4)])
        engine.destroy()
    return truth, _load(folder, ways, autocast)


def _save_otherwise(folder):
    """As earlier versions did, with all weights in the model file, and before the first step; then go on from both."""
    found = {}
    for way in ("1", "2"):
        engine = small_engine(way)
        checkpoints = Checkpoints(engine, folder / "unstepped" / way, background=False)
        checkpoints.save(1, {"best": {}})
        train_step(engine, 0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("diffcse_scale.checkpoints.checkpoint.sharded_names", lambda engine: set())
            Checkpoints(engine, folder / "earlier" / way, background=False).save(1, {"best": {}})
        expected = [train_step(engine, step) for step in (1, 2)]
        for name, steps in (("unstepped", (0, 1, 2)), ("earlier", (1, 2))):
            again = small_engine(way)
            opened = _opened_model_files(Checkpoints(again, folder / name / way).load)
            found[name, way] = ([train_step(again, step) for step in steps][-2:], expected, opened)
    return found


def _opened_model_files(call):
    """How often `call` opens a model file."""
    opened = []

    def audit(event, arguments):
        if event == "open" and str(arguments[0]).endswith(MODEL_FILE):
            opened.append(arguments[0])

    sys.addaudithook(audit)  # it stays until the process ends
    call()
    return len(opened)


def _load(folder, ways, autocast):
    """Load each checkpoint each way, and go on."""
    found = {}
    for saved, way in itertools.product(ways, ways):
        engine = small_engine(way, autocast)
        Checkpoints(engine, folder / saved).load()
        found[saved, way] = (whole_state(engine), [train_step(engine, step) for step in (3, 4)])
        engine.destroy()
    return found


def _load_and_damage(folder, ways, autocast):
    """Load on other ranks; then what is said when a shard was cut short, and when it is gone, and no other is whole."""
    found = _load(folder, ways, autocast)
    engine = small_engine("2")
    if rank() == 0:
        shutil.copytree(folder / "1", folder / "damaged")
    torch.distributed.barrier()
    (shard,) = (folder / "damaged" / "step-00000003").glob("zero_pp_rank_1_*")
    for damage in (lambda: shard.write_bytes(shard.read_bytes()[:1000]), shard.unlink):
        with pytest.raises(InputError, match=r"No checkpoint in .* is complete, although latest names step-00000003"):
            torch.distributed.barrier()
            if rank() == 0:
                damage()
            torch.distributed.barrier()
            Checkpoints(engine, folder / "damaged").load()
    return found


@pytest.mark.parametrize(
    ("ways", "autocast", "ranks"),
    [
        pytest.param(["0", "1", "2", "3"], False, (2, 1)),
        pytest.param([way for way in WAYS if "nodes" not in way], False, (3, 2), marks=pytest.mark.slow),
        pytest.param(["1", "3", "3 within nodes"], False, (4, 2), marks=pytest.mark.slow),
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
    for saved in ways:
        _check_weights_without_an_engine(tmp_path / saved / "step-00000003", truth[saved][0])


@pytest.mark.slow
def test_checkpoints_of_earlier_versions_and_from_before_the_first_step_are_gone_on_from(tmp_path):
    for r, found in enumerate(run_ranks(_save_otherwise, 2, tmp_path, tmp_path)):
        for losses, expected, opened in found.values():
            assert losses == expected
            assert opened == (2 if r == 0 else 1)  # rank 0 compares its checksum too
    for way in ("1", "2"):
        earlier, now = (tmp_path / name / way for name in ("earlier", "unstepped"))
        weights = {name for name, parameter in Network().named_parameters() if parameter.requires_grad}
        assert weights <= _names(earlier / STEP_1)
        assert _names(now / STEP_1) == {name for name, _ in Network().named_buffers()}
        for folder in (earlier, now):
            network = Network()
            load_weights(network, folder / STEP_1)
            by_deepspeed = get_fp32_state_dict_from_zero_checkpoint(folder, STEP_1)
            assert all(torch.equal(network.get_parameter(name), by_deepspeed[name]) for name in weights)


def _names(folder):
    """What a model file has."""
    return set(torch.load(folder / MODEL_FILE, weights_only=False)["module"])


def _check_weights_without_an_engine(folder, state):
    if folder.parent.name[0] in "12":
        assert _names(folder) == {name for name, _ in Network().named_buffers()}
    network = Network()
    load_weights(network, folder)
    assert all(torch.equal(parameter, state[f"model {name}"]) for name, parameter in network.named_parameters())
    assert all(torch.equal(buffer, state[f"buffer {name}"]) for name, buffer in network.named_buffers())
    network.words = torch.nn.Embedding(12, WIDTH)
    with pytest.raises(InputError, match=r"is another model's|lacks \d+ elements of words"):
        load_weights(network, folder)


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
