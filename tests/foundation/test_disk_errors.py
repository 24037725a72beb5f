"""An error of the disk is one sentence that says what, where and what to do, whatever has met it."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import save_file

from diffcse_scale.checkpoints.shards import ShardWriter
from diffcse_scale.foundation.durable import make_folder, publish, save_weights, sync_folder, write_durably
from diffcse_scale.foundation.errors import InputError, disk_errors_at, error_of_disk, exit_code_of, told
from diffcse_scale.foundation.exit_codes import ExitCode
from diffcse_scale.foundation.objects import read_object
from diffcse_scale.foundation.ownership import write_file
from diffcse_scale.runs.metrics_file import MetricsFile
from tests.support.file_events import FileEvents, fail
from tests.support.small_disk import small_disk

ERRORS = [errno.EDQUOT, errno.ENOSPC, errno.EIO, errno.EROFS, errno.ESTALE]
MUCH = torch.ones(200_000)


def _torch_to_a_file(file: Path) -> None:
    with file.open("wb") as opened:
        torch.save(MUCH, opened)


def _a_shard(file: Path) -> None:
    writer = ShardWriter(background=False)
    writer.save({"x": MUCH}, str(file))
    writer.written()


def _many_files(folder: Path) -> None:
    (folder.parent.parent / "much").mkdir()
    (folder.parent.parent / "much" / "file").write_bytes(MUCH.numpy().tobytes())
    shutil.copytree(folder.parent.parent / "much", folder)


WRITERS: dict[str, Callable[[Path], object]] = {
    "python": lambda file: file.write_bytes(MUCH.numpy().tobytes()),
    "numpy": lambda file: np.save(file, MUCH.numpy()),
    "torch": lambda file: torch.save(MUCH, file),
    "torch to a file": _torch_to_a_file,
    "safetensors": lambda file: save_file({"x": MUCH}, file),
    "pyarrow": lambda file: pyarrow.parquet.write_table(pyarrow.table({"x": np.random.rand(200_000)}), file),
    "many files": _many_files,
    "a shard": _a_shard,
}


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("small") / "disk"
    with small_disk(folder, "64k") as mounted:
        if not mounted:
            pytest.skip("this user may not mount a small file system")
        yield folder


@pytest.mark.parametrize("library", WRITERS)
def test_a_full_disk_is_told_whatever_library_writes(full: Path, library: str) -> None:
    with pytest.raises(Exception) as raised, disk_errors_at(full / "place"):
        WRITERS[library](full / library.replace(" ", "-"))
    said = told(raised.value)
    assert said is not None and said.startswith(f"{full}/"), said
    reason = (
        "torch cannot write it, usually because the disk is full" if library == "torch" else "No space left on device"
    )
    assert said.endswith(f": {reason}; free disk space.") and exit_code_of(raised.value) == 2


OURS: dict[str, Callable[[Path], object]] = {
    "file": lambda folder: write_durably("{}", folder / "state.json"),
    "folder": lambda folder: make_folder(folder / "one" / "two"),
    "names": sync_folder,
    "published": lambda folder: publish(folder / "fresh", folder / "place"),
    "weights": lambda folder: save_weights({"x": torch.ones(2)}, folder / "x.safetensors"),
    "metrics": lambda folder: _metrics(folder / "metrics.jsonl"),
}


def _metrics(file: Path) -> None:
    metrics = MetricsFile(file)
    metrics.write({"step": 1})
    metrics.sync()


@pytest.mark.parametrize("place", OURS)
def test_every_call_that_fails_says_where_and_what_to_do(tmp_path: Path, place: str) -> None:
    """Each of its calls, one after another, with each error."""
    tried = 0
    for code in ERRORS:
        for at in range(1, 100):
            folder = tmp_path / f"{code}-{at}"
            (folder / "fresh").mkdir(parents=True)
            (folder / "fresh" / "file").write_text("x")
            with FileEvents([folder], fail(at, code)) as events:
                try:
                    OURS[place](folder)
                except OSError as error:
                    said = told(error) or ""
                    assert said.startswith(f"{folder}") and f": {os.strerror(code)}; " in said and said.endswith(".")
                    assert exit_code_of(error) is ExitCode.MISTAKE
            if events.count < at:
                break
            tried += 1
    assert tried >= len(ERRORS)


@pytest.mark.parametrize("code", [*ERRORS, errno.EACCES])
def test_a_file_that_cannot_be_read_is_not_called_damaged(tmp_path: Path, code: int) -> None:
    """Nobody is told to delete what the file server does not give at the moment."""
    (tmp_path / "run.json").write_text("{}")
    with FileEvents([tmp_path], fail(1, code), only="read", reads=True), pytest.raises(OSError) as raised:
        read_object(tmp_path / "run.json")
    assert (told(raised.value) or "").startswith(f"{tmp_path / 'run.json'}: {os.strerror(code)}; ")


def test_a_report_that_cannot_be_written_says_what_to_do(tmp_path: Path) -> None:
    with (
        FileEvents([tmp_path], fail(1, errno.EDQUOT), only="write"),
        pytest.raises(InputError, match=r"report.json cannot be written \(disk quota exceeded\); free disk space, or"),
    ):
        write_file(tmp_path / "report.json", "{}")
    assert not list(tmp_path.iterdir())


def test_an_error_of_the_program_is_not_the_disks() -> None:
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device", "/a")
        except OSError:
            {}["missing"]  # type: ignore[index]
    except KeyError as error:
        assert error_of_disk(error) is None and told(error) is None
    wrapped = InputError("The cache is full.")
    wrapped.__cause__ = OSError(errno.ENOSPC, "No space left on device", "/a")
    with pytest.raises(InputError, match="The cache"), disk_errors_at("/b"):
        raise wrapped
