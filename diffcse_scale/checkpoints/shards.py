"""Writes and reads a rank's files of a checkpoint.

DeepSpeed decides what is in them, and calls its checkpoint engine for each file; `ShardWriter` is that engine. A save
copies the tensors to host memory and returns. A thread then writes the file, computes its checksum, flushes it to the
disk and reads it back.
"""

from __future__ import annotations

import copy
import copyreg
import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointCommitInfo, CheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address
from torch import Tensor

from diffcse_scale.foundation.file_digest import sha256_of

PINNED = {"cuda"}  # devices that copy to pinned host memory by themselves, and only there at full speed

# classes in DeepSpeed's files besides tensors and plain values
DEEPSPEED_CLASSES = [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]
# Python before 3.11.4 pickles an enum member as a call of `getattr`, which must not be allowed when unpickling
copyreg.pickle(ZeroStageEnum, lambda stage: (ZeroStageEnum, (stage.value,)))


class FileEntry(NamedTuple):
    """A file of a checkpoint: its name in the folder, its size in bytes, its SHA-256 in hexadecimal."""

    name: str
    size: int
    sha256: str


def file_entry(path: Path) -> FileEntry:
    """The entry of a file; reads the whole file."""
    return FileEntry(path.name, path.stat().st_size, sha256_of(path))


def read_shard(path: str | Path, *, mmap: bool = False) -> dict[str, Any]:
    """Read one of DeepSpeed's files to the host. Only tensors, plain values and `DEEPSPEED_CLASSES` are unpickled."""
    with torch.serialization.safe_globals(DEEPSPEED_CLASSES):
        content: dict[str, Any] = torch.load(path, map_location="cpu", mmap=mmap, weights_only=True)
    return content


class ShardWriter(CheckpointEngine):
    """Writes this rank's files, in the background or at once.

    Args:
        background: whether `save` returns as soon as the tensors are in host memory, before the files are written.
    """

    def __init__(self, background: bool = True) -> None:
        super().__init__()
        self.name = type(self).__name__
        self._background = background
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: list[Future[FileEntry]] = []
        self._later: list[Future[None]] = []

    def create(self, info: CheckpointCommitInfo) -> None:
        """Called when DeepSpeed begins a checkpoint."""

    def commit(self, info: CheckpointCommitInfo) -> bool:
        """Called when DeepSpeed has handed over everything; the files need not exist yet."""
        return True

    def preserves_storage_sharing(self) -> bool:
        """False: every tensor is copied separately, so that the storage that it is a part of is not written too."""
        return False

    def save(self, state_dict: dict[str, Any], path: str) -> None:
        """Take a copy of `state_dict` and write it to `path`."""
        copied = _on_host(state_dict)
        if torch.cuda.is_initialized():
            torch.cuda.current_stream().synchronize()  # once for all tensors
        self._submit(_write, copied, Path(path))

    def load(self, path: str, map_location: Any = None) -> dict[str, Any]:
        """Read what `save` wrote; DeepSpeed moves it to its device."""
        return read_shard(path)

    def write_text(self, text: str, path: Path) -> None:
        """Write a small text file in the same way."""
        self._submit(_write, text, path)

    def later(self, call: Callable[[], None]) -> None:
        """Run `call` after all files so far are written; in the background if files are written there."""
        self._later.append(self._thread.submit(call))
        if not self._background:
            self.finish()

    def finish(self) -> None:
        """Wait until all calls of `later` have ended, successfully or not."""
        calls, self._later = self._later, []
        wait(calls)

    def writing(self) -> bool:
        """Whether files are still being written."""
        return any(not future.done() for future in self._writing)

    def written(self) -> list[FileEntry]:
        """Wait for all files since the last call, and return their entries.

        Raises:
            OSError: a file could not be written, or reads back differently.
        """
        futures, self._writing = self._writing, []
        return [future.result() for future in futures]

    def _submit(self, write: Callable[[Any, Path], FileEntry], content: Any, path: Path) -> None:
        future = self._thread.submit(write, content, path)
        self._writing.append(future)
        if not self._background:
            future.exception()  # waits


class _Hashing:
    """A file that computes the checksum of what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.sha256, self.size = file, hashlib.sha256(), 0

    def write(self, content: Any) -> int:
        self.sha256.update(content)
        self.size += memoryview(content).nbytes
        return self._file.write(content)

    def flush(self) -> None:
        self._file.flush()


def _write(content: Any, path: Path) -> FileEntry:
    """Write a file, flush it to the disk, and read it back from there."""
    with path.open("wb") as raw:
        file = _Hashing(raw)
        if isinstance(content, str):
            file.write(content.encode())
        else:
            try:
                torch.save(content, file)  # type: ignore[arg-type]
            except RuntimeError as error:
                # torch's writer hides the file's own error
                raise OSError(*_reason(error), str(path)) from error
        raw.flush()
        os.fsync(raw.fileno())
        if hasattr(os, "posix_fadvise"):
            # drop the page cache; reading it back would not check the disk
            os.posix_fadvise(raw.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    intended = FileEntry(path.name, file.size, file.sha256.hexdigest())
    if file_entry(path) != intended:
        raise OSError(0, "the file does not hold what was written to it", str(path))
    return intended


def _reason(error: BaseException) -> tuple[int, str]:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno is not None:
            return cause.errno, cause.strerror or str(cause)
        cause = cause.__cause__ or cause.__context__
    return 0, str(error).splitlines()[0]


def _tensor_on_host(tensor: Tensor) -> Tensor:
    if tensor.device.type in PINNED:
        try:
            # PyTorch keeps pinned memory for the next checkpoint
            return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
        except RuntimeError:  # no more pinned memory is available
            pass
    return tensor.to("cpu", copy=True)


def _on_host(value: Any) -> Any:
    """A copy on the host that later steps do not change; complete once the device has finished its queued work."""
    if isinstance(value, Tensor):
        return _tensor_on_host(value.detach())
    if isinstance(value, dict):
        copied: dict[Any, Any] = OrderedDict() if isinstance(value, OrderedDict) else {}
        copied.update((key, _on_host(entry)) for key, entry in value.items())
        return copied
    if type(value) in (list, tuple):
        return type(value)(map(_on_host, value))
    return copy.copy(value)
