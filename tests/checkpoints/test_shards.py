"""A rank's files: what is written can be read, is known by its checksum, and a failure says why."""

from __future__ import annotations

import hashlib
import os

import pytest
import torch
from deepspeed.runtime.zero.config import ZeroStageEnum

from diffcse_scale.checkpoints import shards
from diffcse_scale.checkpoints.shards import ShardWriter, read_shard


def _state():
    base = torch.arange(12.0)
    return {"weights": {"a": base[:3], "b": torch.ones(2, dtype=torch.bfloat16)}, "steps": [1, (2, "x")], "none": None}


@pytest.mark.parametrize("background", [True, False])
def test_what_was_written_is_read_back_and_has_the_checksum_that_is_told(tmp_path, background):
    writer = ShardWriter(background)
    writer.save(_state(), str(tmp_path / "shard.pt"))
    writer.write_text("hello", tmp_path / "state.json")
    shard, text = writer.written()
    found = read_shard(tmp_path / "shard.pt")
    assert torch.equal(found["weights"]["a"], torch.arange(3.0)) and found["weights"]["b"].dtype == torch.bfloat16
    assert found["steps"] == [1, (2, "x")] and found["none"] is None
    for entry, name in ((shard, "shard.pt"), (text, "state.json")):
        content = (tmp_path / name).read_bytes()
        assert entry == (name, len(content), hashlib.sha256(content).hexdigest())
    assert writer.written() == []


def test_a_part_of_a_large_storage_does_not_bring_the_rest_along(tmp_path):
    writer = ShardWriter()
    writer.save({"part": torch.zeros(1_000_000)[:10]}, str(tmp_path / "shard.pt"))
    (entry,) = writer.written()
    assert entry.size < 10_000


def test_the_stage_is_read_back_whatever_python_wrote_it(tmp_path, monkeypatch):
    # how 3.11.0 to 3.11.3 pickle a member of an enumeration
    monkeypatch.setattr(ZeroStageEnum, "__reduce_ex__", lambda stage, _: (getattr, (ZeroStageEnum, stage.name)))
    writer = ShardWriter()
    writer.save({"stage": ZeroStageEnum.weights}, str(tmp_path / "shard.pt"))
    writer.written()
    assert read_shard(tmp_path / "shard.pt") == {"stage": ZeroStageEnum.weights}


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("text", [True, False], ids=["text", "tensors"])
def test_a_full_disk_is_told_by_its_own_name(tmp_path, background, text):
    (tmp_path / "shard.pt").symlink_to("/dev/full")
    writer = ShardWriter(background)
    if text:
        writer.write_text("hello", tmp_path / "shard.pt")
    else:
        writer.save(_state(), str(tmp_path / "shard.pt"))
    with pytest.raises(OSError, match="No space left on device"):
        writer.written()


def test_a_disk_that_does_not_keep_what_it_was_given_is_noticed(tmp_path, monkeypatch):
    # what stands between writing and reading back
    monkeypatch.setattr(os, "posix_fadvise", lambda *_: (tmp_path / "shard.pt").write_text("hellO"))
    writer = ShardWriter()
    writer.write_text("hello", tmp_path / "shard.pt")
    with pytest.raises(OSError, match="does not hold what was written to it"):
        writer.written()


def test_a_shard_with_code_in_it_is_not_read(tmp_path):
    class Surprise:
        def __reduce__(self):
            return print, ("surprise",)

    torch.save({"surprise": Surprise()}, tmp_path / "shard.pt")
    with pytest.raises(Exception, match="Weights only load failed"):
        read_shard(tmp_path / "shard.pt")


@pytest.mark.parametrize("enough", [True, False], ids=["enough", "too little"])
def test_a_gpus_tensors_come_through_pinned_memory_and_are_waited_for_once(tmp_path, monkeypatch, enough):
    """A CPU stands in for the GPU: its copies are as asked for, but no memory is pinned."""
    empty_like, events = torch.empty_like, []

    def allocate(tensor, device, pin_memory):
        assert device == "cpu" and pin_memory
        events.append("pinned")
        if not enough:
            raise RuntimeError("CUDA error: out of memory")
        return empty_like(tensor)

    class Stream:
        def synchronize(self):
            events.append("waited")

    monkeypatch.setattr(shards, "PINNED", {"cpu"})
    monkeypatch.setattr(torch, "empty_like", allocate)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(ShardWriter, "_submit", lambda *arguments: events.append(arguments[2]))
    state = _state()
    ShardWriter().save(state, str(tmp_path / "shard.pt"))
    assert events[:3] == ["pinned", "pinned", "waited"]
    copied = events[3]
    assert torch.equal(copied["weights"]["a"], state["weights"]["a"])
    assert copied["weights"]["a"].data_ptr() != state["weights"]["a"].data_ptr()
