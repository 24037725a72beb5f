"""The real program, killed at random moments, two at one folder, and memory for little and for much input."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from diffcse_scale.encoding import EncodeOptions
from diffcse_scale.encoding.folder_manifest import begun
from diffcse_scale.encoding.pipeline import encode
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.foundation.locks import Lock
from tests.support.encoding_material import sentence
from tests.support.memory import PeakMemory

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = "from diffcse_scale.cli import main; main()"
MB = 1 << 20


def text_of(folder: Path, rows: int) -> Path:
    file = folder / f"{rows}.txt"
    # 256 different ones: what is repeated in a window is encoded once, and the test is about many rows
    file.write_text("".join(f"{sentence(index % 256)}\n" for index in range(rows)), encoding="utf-8")
    return file


def start(model: Path, file: Path, output: Path, devices: str) -> subprocess.Popen[bytes]:
    """`diffcse-scale encode` with 150 shards to write."""
    options = ["--model", model, "--input", file, "--output", output, "--devices", devices]
    options += ["--window", 16, "--batch-tokens", 64, "--dtype", "int8", "--keep-text"]
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    command = [sys.executable, "-c", PROGRAM, "encode", *map(str, options)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.DEVNULL)


def shards(output: Path) -> int:
    journal = output / "_shards.jsonl"
    return journal.read_text().count("\n") if journal.is_file() else 0


@pytest.mark.slow
def test_killed_five_times_on_one_and_two_devices_the_files_are_those_of_an_unkilled_run(
    tmp_path: Path, model_dir: Path
) -> None:
    file, whole, killed = text_of(tmp_path, 2400), tmp_path / "whole", tmp_path / "killed"
    assert start(model_dir, file, whole, "cpu").wait() == 0
    draw = random.Random(0)
    moments = sorted(draw.sample(range(1, 140), 5))
    at_kill = []
    for number, moment in enumerate(moments):
        process = start(model_dir, file, killed, "cpu,cpu" if number == 1 else "cpu")
        while shards(killed) < moment and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL  # it was at work, not finished
        at_kill.append(shards(killed))
    assert start(model_dir, file, killed, "cpu").wait() == 0
    assert at_kill == sorted(set(at_kill)) and at_kill[-1] < 150  # each went on where the last had stopped
    names = sorted(path.name for path in whole.iterdir())
    assert sorted(path.name for path in killed.iterdir()) == names
    assert len([name for name in names if name.endswith(".parquet")]) == 150
    for name in names:
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.fixture
def facts(tmp_path: Path, model_dir: Path) -> dict[str, Any]:
    """Of a folder that was encoded, `before`; hosts share no locks from then on."""
    options = EncodeOptions(
        model=str(model_dir),
        input=[str(text_of(tmp_path, 20))],
        output=str(tmp_path / "before"),
        window=10,
        devices="cpu",
    )
    encode(options, progress=False)
    found = json.loads((tmp_path / "before" / "_manifest.json").read_text())
    return {name: value for name, value in found.items() if name not in ("written_by", "ranges")}


def test_hosts_that_share_no_locks_do_the_same_work_twice_and_no_other_work_in_one_folder(
    tmp_path: Path, facts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = [json.loads(line) for line in (tmp_path / "before" / "_shards.jsonl").read_text().splitlines()]
    monkeypatch.setattr(Lock, "take", lambda path: None)
    with begun(tmp_path / "both", facts) as first, begun(tmp_path / "both", facts) as second:
        for shard in shards:
            first.record(shard)
            second.record(shard)
        first.tidy()
    assert (tmp_path / "both" / "_shards.jsonl").read_bytes() == (tmp_path / "before" / "_shards.jsonl").read_bytes()
    with begun(tmp_path / "other", facts) as first, begun(tmp_path / "other", {**facts, "max_length": 5}) as second:
        with pytest.raises(InputError, match=r"has begun .*other again, with max_length 5, not None; choose another"):
            first.record(shards[0])
        second.record(shards[1])
    assert [json.loads(line) for line in (tmp_path / "other" / "_shards.jsonl").read_text().splitlines()] == shards[1:]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_input(tmp_path: Path, model_dir: Path) -> None:
    def peak(rows: int) -> int:
        options = EncodeOptions(
            model=str(model_dir),
            input=[str(text_of(tmp_path, rows))],
            output=str(tmp_path / f"out-{rows}"),
            devices="cpu",
            format="npy",
        )
        memory = PeakMemory()
        encode(options, progress=False)
        found, _ = memory.read()
        memory.close()
        return found

    peak(150_000)  # what is allocated once, and kept: blocks of 10 MB of text, for one
    little, much = peak(160_000), peak(640_000)
    # the text alone has 34 MB more, the embeddings 46 MB
    assert much - little < 40 * MB
