"""Notices that a rank has fallen silent, says which, keeps the stacks of those that wait for it, and ends the job.

A rank that hangs takes all others with it: they wait in a collective, for ever. So every rank has a thread that goes
on whatever the main thread waits for. It writes a sign of life into the store that all ranks share (rank 0 serves it)
and reads the next rank's. What it can find:

- a process that is stopped, or behind a dead network: its signs of life have ended;
- rank 0 in that state: the store does not answer;
- a main thread that stands still although all processes live: of all ranks it has got least far.

Silence is measured in seconds for which this process itself has run. Where all are stopped together, by a scheduler, a
container or Ctrl-Z, none of them is silent.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from diffcse_scale.distributed import CONTROL_PATIENCE, rank, world_size
from diffcse_scale.foundation.environment import host_name
from diffcse_scale.foundation.exit_codes import ExitCode
from diffcse_scale.foundation.signals import end_workers
from diffcse_scale.rendezvous import STORE_ERRORS, Store, control_store

# what a main thread may do for longer than a hang's time without a sign: it depends on disks and on the corpus
SLOW = ("preparing", "checkpointing", "exporting")
VERDICT = "hang"
# seconds for which the last words are written: a disk that hangs may be why
WRITING = 10.0


class _Sign(NamedTuple):
    """A rank's sign of life: `beats` counts the main thread's steps, `seconds` the thread's own periods."""

    periods: int
    beats: int
    doing: str

    @classmethod
    def read(cls, text: bytes) -> _Sign:
        periods, beats, doing = text.decode().split(" ", 2)
        return cls(int(periods), int(beats), doing)

    def __str__(self) -> str:
        return f"{self.periods} {self.beats} {self.doing}"


class Watchdog:
    """One a rank; watches while it is entered.

    Args:
        folder: where stacks are written, as `rank-3.txt`.
        patience: seconds of silence after which a rank counts as lost.
        report: called with the one sentence and the exit code before the process ends, on every rank that can.
        leave: ends the process.
    """

    def __init__(
        self,
        folder: Path,
        patience: float,
        report: Callable[[str, ExitCode], None] = lambda message, code: None,
        leave: Callable[[int], None] = os._exit,
    ) -> None:
        self._folder, self._patience, self._report, self._leave = folder, patience, report, leave
        self._period = min(1.0, patience / 10)
        self._store = control_store()
        self._now = 0.0  # seconds for which this process has run while it watched
        self._beats, self._doing, self._periods = 0, "preparing", 0
        self._last_beat = self._answered = 0.0  # when the main thread and the store last gave a sign
        self._signs: dict[int, tuple[_Sign, float]] = {}  # of others, and when they last changed
        self._over, self._ending = threading.Event(), threading.Lock()

    def beat(self, doing: str) -> None:
        """The main thread got so far and is `doing` something."""
        self._beats, self._doing, self._last_beat = self._beats + 1, doing, self._now

    def __enter__(self) -> Watchdog:
        self._begin()
        if self._store is not None:
            threading.Thread(target=self._exchange, name="signs of life", daemon=True).start()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()

    def _exchange(self) -> None:
        """Write this rank's sign and read others'. It may block for long; `_watch` looks when it last got through."""
        store = self._store
        assert store is not None
        store.set_timeout(CONTROL_PATIENCE)  # of its own it would count on while this process is stopped
        following = (rank() + 1) % world_size()
        while not self._over.wait(self._period):
            self._periods += 1
            try:
                store.set(_key(rank()), str(_Sign(self._periods, self._beats, self._doing)))
                # everybody looks at one neighbour, and at all when there is a reason to
                suspicious = self._now - self._last_beat > self._patience / 2
                for other in range(world_size()) if suspicious else (following,):
                    self._note(store, other)
                self._answered = self._now
                if store.check([VERDICT]):
                    self._end(store.get(VERDICT).decode())
            except STORE_ERRORS:
                # rank 0 has gone, as it does when it is ready; if not, `_watch` will find that nothing answers
                return

    def _begin(self) -> None:
        """As if all had given their first sign just now: a rank that never gives any is silent, too."""
        self._last_beat = self._answered = self._now
        self._signs = {other: (_Sign(0, 0, ""), self._now) for other in range(world_size()) if other != rank()}

    def _note(self, store: Store, other: int) -> None:
        if other == rank() or not store.check([_key(other)]):
            return
        sign = _Sign.read(store.get(_key(other)))
        known, changed = self._signs[other]
        self._signs[other] = (sign, changed if known.periods == sign.periods else self._now)

    def _watch(self) -> None:
        before = time.monotonic()
        while not self._over.wait(self._period):
            now = time.monotonic()
            self._count(now - before)
            before = now
            verdict = self._verdict()
            if verdict is not None:
                # a store that does not answer would not answer this either
                if self._now - self._answered < self._patience / 2:
                    with suppress(*STORE_ERRORS):  # rank 0 may have left just now
                        if (store := control_store()) is not None:
                            store.set(VERDICT, verdict)
                self._end(verdict)

    def _count(self, seconds: float) -> None:
        """A period has taken so long: more than two of them, and this process was stopped, or not served."""
        self._now += min(seconds, 2 * self._period)
        if seconds > self._patience:
            # those that were stopped with it may wake later
            self._begin()

    def _verdict(self) -> str | None:
        """Who is silent, in a sentence; None if nobody is."""
        now = self._now
        waits = now - self._last_beat
        if self._store is not None and rank() != 0 and now - self._answered > self._patience:
            return self._sentence("Rank 0", f"has given no sign of life for {now - self._answered:.0f} seconds")
        for other, (_, changed) in self._signs.items():
            # a sign that was never looked at again says nothing: only neighbours are read all the time
            looked_at = other == (rank() + 1) % world_size() or waits > self._patience
            if looked_at and now - changed > self._patience:
                return self._sentence(f"Rank {other}", f"has given no sign of life for {now - changed:.0f} seconds")
        # twice the time: a process that is stopped has had its chance to be found out as what it is
        if self._doing in SLOW or waits <= 2 * self._patience:
            return None
        least = min((sign.beats for sign, _ in self._signs.values()), default=self._beats)
        behind = [str(other) for other, (sign, _) in sorted(self._signs.items()) if sign.beats == least < self._beats]
        if behind:
            return self._sentence(f"Rank {', '.join(behind)}", f"is alive but has not gone on for {waits:.0f} seconds")
        if world_size() > 1 and any(sign.beats > self._beats for sign, _ in self._signs.values()):
            return self._sentence(f"Rank {rank()}", f"is alive but has not gone on for {waits:.0f} seconds")
        return self._sentence("No rank", f"has gone on for {waits:.0f} seconds, and none is behind the others")

    def _sentence(self, who: str, what: str) -> str:
        return f"{who} {what} while {self._doing}; the stacks of the ranks that wait are in {self._folder}."

    def _end(self, verdict: str) -> None:
        with self._ending:
            if self._over.is_set():
                return
            self._over.set()
        with suppress(OSError, ValueError):  # there may be nobody who reads it
            print(f"error on rank {rank()} ({host_name()}): {verdict}", file=sys.stderr, flush=True)
        writing = threading.Thread(target=self._write, args=(verdict,), name="last words", daemon=True)
        writing.start()
        writing.join(WRITING)
        # the launcher ends the others when the first leaves; they, too, are to write their stacks
        time.sleep(2 * self._period + 1)
        end_workers()
        self._leave(ExitCode.HUNG)

    def _write(self, verdict: str) -> None:
        """What is known first, then where every thread stands."""
        self._report(verdict, ExitCode.HUNG)
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / f"rank-{rank()}.txt").open("w", encoding="utf-8", buffering=1) as stacks:
            stacks.write(f"rank {rank()} on {host_name()}, process {os.getpid()}: {verdict}\n")
            # faulthandler reads the stacks of threads that come and go, and may crash
            names = {thread.ident: thread.name for thread in threading.enumerate()}
            for ident, newest in sys._current_frames().items():
                stacks.write(f"\nThread {names.get(ident, ident)}, the most recent call first:\n")
                for frame, line in traceback.walk_stack(newest):
                    stacks.write(f'  File "{frame.f_code.co_filename}", line {line} in {frame.f_code.co_name}\n')


def _key(number: int) -> str:
    return f"sign of rank {number}"
