"""Notices that a rank has fallen silent, says which, keeps the stacks of those that wait for it, and ends the job.

A rank that hangs takes all others with it: they wait in a collective, for ever. So every rank has a thread that goes
on whatever the main thread waits for. It writes a sign of life into the store that all ranks share (rank 0 serves it)
and reads the next rank's. What it can find:

- a process that is stopped, or behind a dead network: its signs of life have ended;
- rank 0 in that state: the store does not answer;
- a main thread that stands still although all processes live: of all ranks it has got least far.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from diffcse_scale.distributed import rank, world_size
from diffcse_scale.foundation.environment import host_name
from diffcse_scale.foundation.exit_codes import ExitCode
from diffcse_scale.foundation.signals import end_workers
from diffcse_scale.rendezvous import STORE_ERRORS, Store, control_store

# what a main thread may do for longer than a hang's time without a sign: it depends on disks and on the corpus
SLOW = ("preparing", "checkpointing", "exporting")
VERDICT = "hang"


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
        self._beats, self._doing, self._last_beat = 0, "preparing", time.monotonic()
        self._store = control_store()
        self._periods = 0
        self._answered = time.monotonic()  # when the store last did
        self._signs: dict[int, tuple[_Sign, float]] = {}  # of others, and when they last changed
        self._over = threading.Event()

    def beat(self, doing: str) -> None:
        """The main thread got so far and is `doing` something."""
        self._beats, self._doing, self._last_beat = self._beats + 1, doing, time.monotonic()

    def __enter__(self) -> Watchdog:
        self._last_beat = self._answered = time.monotonic()
        self._forget()
        if self._store is not None:
            threading.Thread(target=self._exchange, name="signs of life", daemon=True).start()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()

    def _exchange(self) -> None:
        """Write this rank's sign and read others'. It may block for ever; `_watch` looks when it last got through."""
        store = self._store
        assert store is not None
        store.set_timeout(timedelta(seconds=max(self._patience, 10.0)))
        following = (rank() + 1) % world_size()
        while not self._over.wait(self._period):
            self._periods += 1
            try:
                store.set(_key(rank()), str(_Sign(self._periods, self._beats, self._doing)))
                # everybody looks at one neighbour, and at all when there is a reason to
                suspicious = time.monotonic() - self._last_beat > self._patience / 2
                for other in range(world_size()) if suspicious else (following,):
                    self._note(store, other)
                self._answered = time.monotonic()
                if store.check([VERDICT]):
                    self._end(store.get(VERDICT).decode())
            except STORE_ERRORS:
                # rank 0 has gone, as it does when it is ready; if not, `_watch` will find that nothing answers
                return

    def _forget(self) -> None:
        """As if every other rank had given its first sign just now: one that never gives any is silent, too."""
        now = time.monotonic()
        self._signs = {other: (_Sign(0, 0, ""), now) for other in range(world_size()) if other != rank()}

    def _note(self, store: Store, other: int) -> None:
        if other == rank() or not store.check([_key(other)]):
            return
        sign, now = _Sign.read(store.get(_key(other))), time.monotonic()
        known, changed = self._signs[other]
        self._signs[other] = (sign, changed if known.periods == sign.periods else now)

    def _watch(self) -> None:
        before = time.monotonic()
        while not self._over.wait(self._period):
            now = time.monotonic()
            if now - before > self._patience / 2:
                # this process itself was stopped: what it knows of others is old
                self._answered = now
                self._forget()
            before = now
            verdict = self._verdict(now)
            if verdict is not None:
                # a store that does not answer would not answer this either
                if now - self._answered < self._patience / 2 and (store := control_store()) is not None:
                    store.set(VERDICT, verdict)
                self._end(verdict)

    def _verdict(self, now: float) -> str | None:
        """Who is silent, in a sentence; None if nobody is."""
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
        if self._over.is_set():
            return
        self._over.set()
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / f"rank-{rank()}.txt").open("w", encoding="utf-8") as stacks:
            stacks.write(f"rank {rank()} on {host_name()}, process {os.getpid()}: {verdict}\n")
            faulthandler.dump_traceback(stacks)
        print(f"error on rank {rank()} ({host_name()}): {verdict}", file=sys.stderr, flush=True)
        self._report(verdict, ExitCode.HUNG)
        # the launcher ends the others when the first leaves; they, too, are to write their stacks
        time.sleep(2 * self._period + 1)
        end_workers()
        self._leave(ExitCode.HUNG)


def _key(number: int) -> str:
    return f"sign of rank {number}"
