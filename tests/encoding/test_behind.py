"""Shards are written by a thread of their own: in order, a few at most, and no failure is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffcse_scale.encoding import EncodeOptions, work
from diffcse_scale.encoding.behind import Behind
from diffcse_scale.encoding.pipeline import encode

SECONDS = 20  # after which a test that would wait for ever fails


def test_results_are_delivered_in_order_by_the_thread_that_gave_the_tasks() -> None:
    delivered: list[tuple[int, int]] = []
    with Behind[int](lambda result: delivered.append((result, threading.get_ident()))) as behind:
        for number in range(5):
            behind.submit(lambda number: number, number)
    assert delivered == [(number, threading.get_ident()) for number in range(5)]


def test_the_giver_does_not_wait_for_a_task_but_for_the_one_before_it() -> None:
    may_end, delivered = threading.Event(), []
    with Behind[bool](delivered.append) as behind:
        behind.submit(may_end.wait, SECONDS)
        behind.look()
        assert not delivered  # and this thread goes on
        threading.Timer(0.1, may_end.set).start()
        behind.submit(lambda: True)
        assert delivered == [True]


def test_a_failure_is_raised_to_the_giver_and_what_was_finished_is_delivered() -> None:
    delivered: list[int] = []
    with pytest.raises(OSError, match="disk"), Behind[int](delivered.append, depth=3) as behind:
        behind.submit(lambda: 1)
        behind.submit(_fail)
        behind.submit(lambda: 3)
    assert delivered[0] == 1 and set(delivered) <= {1, 3}


def test_an_exception_of_the_giver_keeps_what_was_finished() -> None:
    delivered: list[int] = []
    with pytest.raises(KeyboardInterrupt), Behind[int](delivered.append) as behind:
        behind.submit(lambda: 1)
        raise KeyboardInterrupt
    assert delivered in ([1], [])  # it may not have begun


def test_the_device_works_on_the_next_window_while_a_shard_is_written(
    options: Callable[..., EncodeOptions], text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_write, real_encode = work.write_shard, work.WindowEncoder.encode
    encoded, order = threading.Event(), []

    def write(file: Path, *arguments: Any) -> dict[str, Any]:
        if file.name.startswith("embeddings-00000"):
            assert encoded.wait(SECONDS), "the second window waits until the first shard is written"
        order.append(file.name)
        return real_write(file, *arguments)

    def encode_window(self: Any, window: Any, progress: Any) -> Any:
        found = real_encode(self, window, progress)
        order.append("encoded")
        if order.count("encoded") == 2:
            encoded.set()
        return found

    monkeypatch.setattr(work, "write_shard", write)
    monkeypatch.setattr(work.WindowEncoder, "encode", encode_window)
    encode(options(text_file), progress=False)
    assert order[:3] == ["encoded", "encoded", "embeddings-00000.parquet"]
    written = [name for name in order if name != "encoded"]
    assert written == sorted(written) and len(written) == 7


def _fail() -> int:
    raise OSError("disk")
