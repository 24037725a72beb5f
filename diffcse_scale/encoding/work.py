"""Distributes windows: one process per device, and each takes the next free window."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from diffcse_scale.encoding.behind import Behind
from diffcse_scale.encoding.rows import Rows
from diffcse_scale.encoding.shard_files import Floats, write_shard
from diffcse_scale.encoding.stored import store
from diffcse_scale.encoding.window_encoder import Window, WindowEncoder
from diffcse_scale.evaluation.sentence_encoder import parse_devices
from diffcse_scale.foundation.devices import device_error, left_idle
from diffcse_scale.foundation.environment import threads_asked_for
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.foundation.finite import check_rows
from diffcse_scale.model_folder.load import load_model, quiet_transformers
from diffcse_scale.text.prefetch import prefetch

log = logging.getLogger(__name__)

MOST_CPU_PROCESSES = 8  # each has the interpreter, torch and the weights; the cores are divided among them

ANEW = "; finished work is kept: --overwrite or another --output starts over"
# advice if numbers overflow the range of a precision
WIDER = {
    "float16": f"give --precision bfloat16 or float32{ANEW}",
    "bfloat16": f"give --precision float32{ANEW}",
    "float32": "the model has no embedding for them: choose another model, or leave these rows out",
}

Report = Callable[[int, int, dict[str, Any] | None], object]
"""Called with the rows and tokens of a batch, or with the facts of a finished shard."""


@dataclass(frozen=True)
class Job:
    """The information that every process needs.

    Attributes:
        model, pooling: as for `load_model`.
        encoder: the other arguments of `WindowEncoder`.
        pending: number, rows and file of each window to encode.
        ranges: the ranges of int8.
    """

    model: str
    pooling: str | None
    encoder: dict[str, Any]
    rows: Rows
    pending: list[tuple[int, range, Path]]
    dtype: str
    keep_text: bool
    ranges: Floats | None = None

    def check(self, embeddings: Floats, rows: range) -> None:
        """Refuse embeddings that are not finite, after they are on the host.

        Raises:
            NotFinite: some rows are not finite; the message names them.
        """
        precision = self.encoder["precision"]
        check_rows(embeddings, f"of the input, computed in {precision},", WIDER[precision], rows.start)

    def open_encoder(self, device: str, threads: int) -> WindowEncoder:
        """Load the model on a device; on a CPU it uses `threads` threads."""
        if device == "cpu":
            torch.set_num_threads(threads)
        quiet_transformers()
        # load on the CPU first: by default every process would load onto the first accelerator
        model, _ = load_model(self.model, self.pooling, device="cpu")
        return WindowEncoder(model, torch.device(device), **self.encoder)


def choose_devices(wanted: str, windows: int) -> list[str]:
    """The devices that `wanted` names, with a process on each, but no more than there are windows.

    "auto" is every accelerator or, without one, several processes on the CPU. Small models gain more from a process
    per core than from a thread per core.

    Raises:
        InputError: a device does not exist.
    """
    if wanted != "auto":
        devices = parse_devices(wanted)
    elif torch.accelerator.is_available():
        kind = torch.accelerator.current_accelerator()
        assert kind is not None
        devices = [f"{kind.type}:{index}" for index in range(torch.accelerator.device_count())]
    else:
        if found := left_idle():
            log.warning("Encoding runs on the CPU, although this machine has %s: %s.", found, device_error())
        devices = ["cpu"] * min(_cores(), MOST_CPU_PROCESSES)
    return devices[: max(1, windows)]


def threads_of(devices: list[str]) -> int:
    """Threads per process: OMP_NUM_THREADS, or the cores divided among the devices."""
    return threads_asked_for() or max(1, _cores() // len(devices))


def run(job: Job, devices: list[str], report: Report) -> None:
    """Encode all pending windows: in this process with one device, otherwise in one process per device.

    Raises:
        InputError: as for `load_model` and `WindowEncoder`; or a shard cannot be written, or memory is too small.
        Exception: any exception of a process is raised here again.
    """
    if len(devices) == 1:
        numbers = iter(range(len(job.pending)))
        return _work(job, devices[0], threads_of(devices), lambda: next(numbers, None), report)
    context = multiprocessing.get_context("spawn")
    taken = context.Value("q", 0)
    processes = {}
    try:
        for device in devices:
            receiver, sender = context.Pipe(duplex=False)
            arguments = (job, device, threads_of(devices), taken, sender)
            processes[receiver] = context.Process(target=_process, args=arguments, daemon=True)
            processes[receiver].start()
            sender.close()
        _listen(processes, devices, len(job.pending), report)
    finally:
        for process in processes.values():
            process.kill()
            process.join()


def _listen(processes: dict[Connection, Any], devices: list[str], shards: int, report: Report) -> None:
    """Forward the processes' reports until `shards` shards are finished."""
    names = dict(zip(processes, devices, strict=True))
    open_ends = set(processes)
    while shards:
        for receiver in wait(open_ends):
            assert isinstance(receiver, Connection)
            try:
                message = receiver.recv()
            except EOFError:
                open_ends.remove(receiver)
                processes[receiver].join()
                if code := processes[receiver].exitcode:
                    # exceptions are sent as messages; a signal usually means that the system ran out of memory
                    ended = f"signal {-code}, perhaps because memory ran out" if code < 0 else f"exit code {code}"
                    raise InputError(
                        f"The process on {names[receiver]} ended with {ended}; finished work is kept: repeat the "
                        "command, with fewer --devices if necessary."
                    ) from None
                continue
            if isinstance(message, Exception):
                raise message
            report(*message)
            shards -= message[2] is not None


def _process(job: Job, device: str, threads: int, taken: Any, sender: Connection) -> None:
    """Main function of one of several processes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles it
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def take() -> int | None:
        with taken.get_lock():
            taken.value += 1
            return taken.value - 1 if taken.value <= len(job.pending) else None

    try:
        _work(job, device, threads, take, lambda *message: sender.send(message))
    except Exception as error:
        sender.send(_portable(error))


def _portable(error: Exception) -> Exception:
    """A form of an error that another process can raise. It has the traceback, unless it is a user's mistake."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # unpickling a class may raise anything
        return RuntimeError("".join(traceback.format_exception(error)))
    if not isinstance(error, InputError | OSError):
        error.add_note("".join(traceback.format_exception(error)))
    return error


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(job: Job, device: str, threads: int, take: Callable[[], int | None], report: Report) -> None:
    """Encode windows until `take` returns None. The next window is tokenized and the previous one written meanwhile."""
    encoder = job.open_encoder(device, threads)

    def prepare(_: int) -> tuple[int, list[str], dict[str, int], Window] | None:
        index = take()
        if index is None:
            return None
        rows = job.pending[index][1]
        texts, flaws = job.rows.read(rows.start, rows.stop)
        return index, texts, dict(sorted(flaws.items())), encoder.prepare(texts)

    with (
        prefetch(prepare, 0, len(job.pending), depth=1) as windows,
        Behind[dict[str, Any]](lambda shard: report(0, 0, shard)) as writer,
    ):

        def progress(count: int, tokens: int) -> None:
            report(count, tokens, None)
            writer.look()

        for item in windows:
            if item is None:
                return
            index, texts, flaws, window = item
            try:
                embeddings = encoder.encode(window, progress)
            except torch.OutOfMemoryError:
                raise InputError(f"{device} has too little memory; lower --batch-tokens and start over.") from None
            about = {"flaws": flaws, **window.counts()}
            writer.submit(_write, job, index, embeddings, texts, about)


def _write(job: Job, index: int, embeddings: Floats, texts: list[str], about: dict[str, Any]) -> dict[str, Any]:
    """Write a window's shard. Returns facts about it, including those `about` its text."""
    number, rows, file = job.pending[index]
    job.check(embeddings, rows)
    stored = store(embeddings, job.dtype, job.ranges)
    if job.dtype == "float16":
        check_rows(stored, "of the input, stored as float16,", f"give --dtype float32{ANEW}", rows.start)
    kept = job.rows.kept.read(rows.start, rows.stop) if job.rows.kept else None
    written = write_shard(file, rows.start, stored, texts if job.keep_text else None, kept)
    return {"shard": number, "rows": len(rows), "dimension": embeddings.shape[1], **about, **written}


def _cores() -> int:
    return len(os.sched_getaffinity(0))
