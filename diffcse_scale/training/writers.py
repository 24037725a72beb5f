"""Parallel work on the files of a large model: each file is written, copied or read by one rank.

Ranks that do not see the main rank's folder take no part, for example on a node with its own disk. If no other rank
sees it, the main rank does everything. All functions must be called on every rank.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from uuid import uuid4

from torch import Tensor
from transformers import PreTrainedModel

from diffcse_scale.distributed import broadcast_object, gather_objects, is_main, rank, world_size
from diffcse_scale.engine.engine import gathered, whole_state
from diffcse_scale.foundation.durable import save_weights, sync_file
from diffcse_scale.foundation.environment import host_name
from diffcse_scale.foundation.errors import InputError, told
from diffcse_scale.foundation.file_digest import sha256_of
from diffcse_scale.model_folder.weight_files import save_encoder, save_without_weights


def write_encoder(encoder: PreTrainedModel, folder: Path | None) -> dict[str, str]:
    """Write an encoder that ZeRO-3 has partitioned, as `save_pretrained` would, its weights file by file.

    In each round a rank holds the weights of at most one file, gathered parameter by parameter. Then all ranks write
    at once and flush their files. If transformers converts a family's weights on saving, the main rank writes them
    alone and holds them all.

    Args:
        folder: on the main rank; it need not exist yet.

    Returns:
        SHA-256 of each weight file, computed by the rank that wrote it.

    Raises:
        InputError: a file could not be written (names the rank).
    """
    planned = (folder, save_without_weights(encoder, folder)) if folder is not None else None
    place, plan = broadcast_object(planned)
    if plan is None:
        state = whole_state(encoder)
        if is_main():
            save_encoder(encoder, place, state)
        return {}
    values, ranks, files = encoder.state_dict(keep_vars=True), _seeing(place), list(plan.items())
    found: dict[str, str] = {}
    for start in range(0, len(files), len(ranks)):
        found |= _write_round(values, dict(files[start : start + len(ranks)]), place, ranks)
    return found


def _write_round(
    values: Mapping[str, Tensor], plan: Mapping[str, Mapping[str, str]], folder: Path, ranks: Sequence[int]
) -> dict[str, str]:
    own: dict[str, dict[str, Tensor]] = {}
    for (file, names), owner in zip(plan.items(), owners(len(plan), ranks), strict=True):
        weights = gathered({name: values[of_network] for name, of_network in names.items()}, owner)
        if owner == rank():
            own[file] = weights

    def write() -> dict[str, str]:
        for file, weights in own.items():
            save_weights(weights, folder / file)
            sync_file(folder / file)  # the main rank's flush may not cover files written on another host
        return {file: sha256_of(folder / file) for file in own}

    return _together(write)


def side_by_side(work: Callable[[str], str], names: list[str], folder: Path) -> dict[str, str]:
    """Run `work` for each of the main rank's `names`, shared among the ranks that see `folder`.

    Returns:
        The answers by name, on the main rank.

    Raises:
        InputError: a file could not be read or written (names the rank).
    """
    names = broadcast_object(names)
    if len(names) < 2 or world_size() == 1:
        return {name: work(name) for name in names} if is_main() else {}
    whose = owners(len(names), _seeing(folder))
    return _together(lambda: {name: work(name) for name, owner in zip(names, whose, strict=True) if owner == rank()})


def owners(count: int, ranks: Sequence[int]) -> list[int]:
    """Assign each of `count` files to one of `ranks`: in turn, and in the last turn as far apart as possible.

    The ranks of one machine have consecutive numbers. So if there are fewer files than ranks, they go to many machines.
    """
    found: list[int] = []
    while len(found) < count:
        files = min(len(ranks), count - len(found))
        found += [ranks[number * len(ranks) // files] for number in range(files)]
    return found


def _seeing(folder: Path) -> list[int]:
    """The ranks that see the main rank's folder, because they find a file that it has just created there."""
    mark = folder / f".seen.{uuid4().hex}"
    if is_main():
        mark.touch()
    mark = broadcast_object(mark)
    seen = gather_objects(os.path.exists(mark))
    if is_main():
        mark.unlink()
    return [number for number, found in enumerate(seen) if found]


def _together(work: Callable[[], dict[str, str]]) -> dict[str, str]:
    """Run `work` on every rank and return all answers on every rank. If the machine refuses one rank, all raise."""
    found: dict[str, str] = {}
    problem = None
    try:
        found = work()
    except Exception as error:
        problem = told(error)
        if problem is None:
            raise
    answers = gather_objects((found, problem, host_name()))
    for number, (_, said, host) in enumerate(answers):
        if said is not None:
            raise InputError(f"Rank {number} on {host}: {said}")
    return {name: answer for each, _, _ in answers for name, answer in each.items()}
