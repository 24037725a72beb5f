"""A checkpoint is what its manifest says, to the last byte, and `latest` names it."""

from __future__ import annotations

import re

import pytest

from diffcse_scale.checkpoints.manifest import LATEST, checkpoint_steps, damage, newest_step, write_manifest
from diffcse_scale.foundation.errors import InputError

SHARDS = [f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(2)]


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "step-00000010"
    folder.mkdir()
    for number, name in enumerate([*SHARDS, "mp_rank_00_model_states.pt"]):
        (folder / name).write_bytes(bytes([number]) * 100)
    (folder / "training_state.json").write_text('{"step": 10}')
    write_manifest(folder, [])
    return folder


def test_what_was_written_is_whole(checkpoint):
    assert damage(checkpoint) is None


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:60]), "has 60 bytes instead of 100"),
        (lambda file: file.write_bytes(bytes([9]) + file.read_bytes()[1:]), "has another content than was written"),
        (lambda file: file.unlink(), r"cannot be read \(no such file or directory\)"),
    ],
    ids=["cut short", "one byte flipped", "gone"],
)
def test_damage_is_named_by_the_rank_whose_shard_it_is_and_by_no_other(checkpoint, change, problem):
    change(checkpoint / SHARDS[1])
    assert damage(checkpoint, part=0, parts=2) is None
    found = damage(checkpoint, part=1, parts=2)
    assert found is not None and found.startswith(SHARDS[1])
    assert re.search(problem, found)


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_every_file_is_some_readers(checkpoint, parts):
    for name in (*SHARDS, "mp_rank_00_model_states.pt", "training_state.json"):
        whole = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(whole + b"!")
        assert [p for p in (damage(checkpoint, part, parts) for part in range(parts)) if p and p.startswith(name)]
        (checkpoint / name).write_bytes(whole)


@pytest.mark.parametrize("text", [None, "", '{"files": {"a', '{"files": {"a": {}}}'])
def test_a_manifest_that_is_missing_or_cut_short_is_damage(checkpoint, text):
    (checkpoint / "manifest.json").unlink()
    if text is not None:
        (checkpoint / "manifest.json").write_text(text)
    assert damage(checkpoint) == "manifest.json is missing or cut short"


def test_latest_names_the_newest_step(checkpoint):
    (checkpoint.parent / LATEST).write_text("step-00000010\n")
    (checkpoint.parent / "step-00000020.partial-1f2e3d4c").mkdir()
    assert checkpoint_steps(checkpoint.parent) == [10]
    assert newest_step(checkpoint.parent) == 10


def test_before_the_first_checkpoint_there_is_none(tmp_path):
    assert newest_step(tmp_path / "absent") == 0
    (tmp_path / LATEST).write_text("none\n")
    assert newest_step(tmp_path) == 0


def test_a_first_checkpoint_counts_from_the_moment_that_it_has_its_name(checkpoint):
    (checkpoint.parent / LATEST).write_text("none\n")
    assert newest_step(checkpoint.parent) == 10


@pytest.mark.parametrize(("text", "problem"), [(None, "is missing"), ("step-0000", "names none of them")])
def test_checkpoints_without_a_latest_are_never_a_fresh_start(checkpoint, text, problem):
    if text is not None:
        (checkpoint.parent / LATEST).write_text(text)
    with pytest.raises(InputError, match=f"{problem}.*write step-00000010 into it"):
        newest_step(checkpoint.parent)
