"""A resume in another shape opens few files, however many there are: counted by Python's own audit of `open`.

1,024 shards as DeepSpeed names and fills them, and one rank of 1,000, played without the others. Only those
shards are there that overlap with its own, known by looking at all: whichever else it looked for would be missing.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from diffcse_scale.checkpoints.resharding import WEIGHT, Group, _copy, _Saved, pieces

SAVED, RANKS = 1024, 1000
NUMELS = [{"embedding": 200_003, "matrix": 65_536}, {"bias": 768, "wide bias": 3072, "one": 1}]
_opened: list[str] | None = None


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    if _opened is not None and (event in ("os.listdir", "os.scandir") or str(arguments[:1]).endswith(".pt',)")):
        _opened.append(f"{event} {Path(str(arguments[0])).name}")


sys.addaudithook(_audit)


def _length(stage: int, numels: dict[str, int], ranks: int) -> int:
    """Of a rank's flat tensor."""
    if stage == 3:
        return sum(-(-numel // ranks) for numel in numels.values())
    return -(-sum(numels.values()) // (2 * ranks)) * 2


def _pieces(stage: int, rank: int, ranks: int) -> list[list]:
    """Of each group."""
    return [
        list(pieces(stage, numels, [0] * len(numels), rank, ranks, _length(stage, numels, ranks))) for numels in NUMELS
    ]


def _save_shard(folder: Path, stage: int, rank: int) -> None:
    """Every element is its index in the parameter, so that it is known wherever it lands."""
    weights = [torch.full((_length(stage, numels, SAVED),), -1.0) for numels in NUMELS]
    for weight, own in zip(weights, _pieces(stage, rank, SAVED), strict=True):
        for piece in own:
            weight[piece.offset : piece.offset + piece.stop - piece.start] = torch.arange(piece.start, piece.stop)
    state = {"state": {g: {"step": torch.tensor(7.0)} for g in range(len(NUMELS))}}
    names = ("fp32_flat_groups", "optimizer_state_dict") if stage == 3 else (
        "single_partition_of_fp32_groups", "base_optimizer_state"
    )  # fmt: skip
    content = {"loss_scaler": None, names[0]: weights, names[1]: state}
    content |= {"param_alignment_paddings": [[0] * len(numels) for numels in NUMELS]}
    torch.save({"optimizer_state_dict": content}, folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")


def _overlapping(stage: int, rank: int) -> set[int]:
    """The saved ranks whose pieces have an element of `rank`'s, by looking at all of them."""
    wanted = [piece for group in _pieces(stage, rank, RANKS) for piece in group]
    return {
        other
        for other in range(SAVED)
        for piece in (piece for group in _pieces(stage, other, SAVED) for piece in group)
        if any(own.name == piece.name and own.start < piece.stop and piece.start < own.stop for own in wanted)
    }


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("rank", [0, 501, 767, 999])
def test_a_rank_opens_the_shards_that_have_something_of_its_own(tmp_path: Path, stage: int, rank: int) -> None:
    expected = _overlapping(stage, rank) | {0}
    for other in expected:
        _save_shard(tmp_path, stage, other)
    shapes = [{name: torch.Size([numel]) for name, numel in numels.items()} for numels in NUMELS]
    model_file = "zero_pp_rank_0_mp_rank_00_model_states.pt" if stage == 3 else "mp_rank_00_model_states.pt"
    torch.save({"param_shapes": shapes}, tmp_path / model_file)

    global _opened
    _opened = []
    saved = _Saved(tmp_path, stage, SAVED, nn.Module(), moments=())
    own = _pieces(stage, rank, RANKS)
    groups = [
        Group(of_group, {WEIGHT: torch.full((_length(stage, numels, RANKS),), -1.0)}, 0)
        for of_group, numels in zip(own, NUMELS, strict=True)
    ]
    _copy(saved, groups)
    opened, _opened = _opened, None

    for group in groups:
        for name, start, stop, offset in group.pieces:
            found = group.tensors[WEIGHT][offset : offset + stop - start]
            assert torch.equal(found, torch.arange(start, stop).float()), name
    names = [f"zero_pp_rank_{other}_mp_rank_00_optim_states.pt" for other in sorted(expected)]
    assert sorted(opened) == sorted(f"open {name}" for name in [model_file, *names])
    # ZeRO-3 cuts each parameter for itself
    assert len(names) <= (SAVED / RANKS + 3 if stage == 2 else 10)
    assert saved.step == 7
