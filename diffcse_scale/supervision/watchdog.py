"""Notices a rank that hangs or has died, names it, writes the stacks of the waiting ranks, and ends the job.

If one rank hangs, all others wait for it in a collective for ever. So every rank has a thread that keeps running while
the main thread waits. It writes a sign of life into the store that all ranks share (rank 0 serves it). Only rank 0
reads all signs. It answers with its own sign, which contains its verdict once there is one. So the amount that a rank
sends does not depend on the number of ranks. These failures are found:

- a process that is stopped, or behind a dead network: its signs of life have ended;
- rank 0 in that state: its signs have ended, or the store does not answer;
- a process that has ended: others have lost their connection to it, and its signs have ended;
- a main thread that stands still although all processes are alive: it has made the least progress of all ranks.

Silence is measured in seconds during which this process itself has run. If all processes are stopped together, by a
scheduler, a container or Ctrl-Z, none of them counts as silent. Neither does a rank that was not checked because the
store is slow.
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

from diffcse_scale.distributed import CONTROL_PATIENCE, is_main, local_rank, rank, world_size
from diffcse_scale.foundation.environment import host_name
from diffcse_scale.foundation.errors import PeerFailed
from diffcse_scale.foundation.exit_codes import ExitCode
from diffcse_scale.foundation.signals import end_workers
from diffcse_scale.rendezvous import (
    STORE_ERRORS,
    Store,
    control_store,
    failure_is_told,
    host_key,
    lost_a_peer,
)

# activities that may take longer than the patience without a sign, because they depend on disks and on the corpus
SLOW = ("preparing", "checkpointing", "exporting")
# the last word of a sign: the main thread makes progress, has stood still for too long, has lost its connection to a
# rank
WELL, STILL, LOST = "well", "still", "lost"
PULSE = "sign of rank 0 and its verdict"
# seconds without a sign after which a rank counts as ended, if another has lost its connection to some rank
GONE = 5.0
# ranks that are named in one sentence, at most
NAMED = 16
# seconds allowed for writing the last message, because a hanging disk may be the cause
WRITING = 10.0


class _Sign(NamedTuple):
    """A rank's heartbeat: `beats` counts signs of the main thread, `periods` the rounds of the exchanging thread."""

    periods: int
    beats: int
    doing: str
    how: str

    @classmethod
    def read(cls, text: bytes) -> _Sign:
        periods, beats, rest = text.decode().split(" ", 2)
        doing, how = rest.rsplit(" ", 1)
        return cls(int(periods), int(beats), doing, how)

    def __str__(self) -> str:
        return f"{self.periods} {self.beats} {self.doing} {self.how}"


UNKNOWN = str(_Sign(0, 0, "beginning", WELL)).encode()  # for a rank that has given no sign yet


class _Verdict(NamedTuple):
    """What is wrong: found by rank 0 about any rank, or by another rank about rank 0."""

    sentence: str
    code: ExitCode
    by_main: bool

    def told_here(self) -> bool:
        """Whether this rank tells the user. If rank 0 cannot, one rank per machine does."""
        return is_main() if self.by_main else local_rank() == 0 or rank() == 1


class Watchdog:
    """Watches the ranks while it is entered. Every rank has one.

    Args:
        folder: where stacks are written, as `rank-3.txt`; None to write none.
        patience: seconds of silence after which a rank counts as lost.
        report: called with the sentence and the exit code before the process ends, on each rank that tells the user.
        leave: ends the process.
    """

    def __init__(
        self,
        folder: Path | None,
        patience: float,
        report: Callable[[str, ExitCode], None] = lambda message, code: None,
        leave: Callable[[int], None] = os._exit,
    ) -> None:
        self._folder, self._patience, self._report, self._leave = folder, patience, report, leave
        self._period = min(1.0, patience / 10)
        self._store = control_store()
        self._now = 0.0  # seconds that this process has run while watching
        self._beats, self._doing, self._periods = 0, "preparing", 0
        self._last_beat = 0.0  # when the main thread last gave a sign
        # of the ranks that this rank watches: their signs, and when these last changed; and when rank 0 last read all
        self._signs: dict[int, bytes] = {}
        self._changed: dict[int, float] = {}
        self._looked = 0.0
        self._lost = False  # whether some rank has lost a connection, and no rank has reported a failure
        self._hosts: dict[int, str] = {}
        self._served = True
        self._found: _Verdict | None = None
        self._publishing = threading.Lock()
        self._leaving = False  # whether the main thread waits for the verdict and will end the process itself
        self._heard, self._over, self._ending = threading.Event(), threading.Event(), threading.Lock()

    def beat(self, doing: str) -> None:
        """Record that the main thread has made progress and is `doing` something."""
        self._beats, self._doing, self._last_beat = self._beats + 1, doing, self._now

    def __enter__(self) -> Watchdog:
        self._begin()
        if self._store is not None:
            threading.Thread(target=self._exchange, name="signs of life", daemon=True).start()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        """End the watch.

        Raises:
            PeerFailed: replaces an error that only says that some rank is gone, and names the rank.
        """
        try:
            if error is not None and self._store is not None and lost_a_peer(error):
                self._name_who_has_gone()
        finally:
            self._over.set()

    def _name_who_has_gone(self) -> None:
        with self._ending:
            self._leaving = True
        if self._over.is_set():  # the verdict came first, and another thread is about to end this process
            time.sleep(WRITING + 2 * self._period + 2)
        deadline = time.monotonic() + 3 * GONE
        while not self._heard.wait(self._period / 4):
            if not self._served and not is_main():
                self._end(self._gone([0]))
            elif failure_is_told() or time.monotonic() > deadline:
                return
        assert self._found is not None
        if is_main():
            time.sleep(2 * self._period + 1)  # the main rank serves the store; the others must read the verdict first
        raise PeerFailed(self._found.sentence, self._found.code, self._found.told_here()) from None

    def _exchange(self) -> None:
        """Write this rank's sign and read the other side's. May block for long; `_watch` checks when it last did so."""
        assert self._store is not None
        try:
            self._store.set_timeout(CONTROL_PATIENCE)  # long: a store's timeout also runs while this process is stopped
            (self._collect if is_main() else self._answer)(self._store)
        except STORE_ERRORS:
            self._served = False  # rank 0 is gone, which is normal once it has finished

    def _collect(self, store: Store) -> None:
        """The exchange on rank 0."""
        others = list(self._signs)
        keys = [_key(other) for other in others]
        self._hosts = dict(enumerate(host.decode() for host in store.multi_get([*map(host_key, range(world_size()))])))
        for key in keys:
            store.compare_set(key, "", UNKNOWN.decode())  # multi_get would wait until all keys exist
        while not self._over.wait(self._period):
            self._periods += 1
            now = self._now
            for other, text in zip(others, store.multi_get(keys) if keys else (), strict=True):
                self._note(other, text, now)
            self._lost = LOST in self._how() and not failure_is_told(store)
            self._looked = now
            self._publish(store)

    def _publish(self, store: Store) -> None:
        with self._publishing:  # two threads publish; neither may overwrite a newer verdict with an older one
            code, sentence = (self._found.code, self._found.sentence) if self._found else (0, "")
            store.set(PULSE, f"{self._periods} {code:d} {sentence}")

    def _answer(self, store: Store) -> None:
        """The exchange on the other ranks."""
        self._hosts = {0: store.get(host_key(0)).decode()}
        while not self._over.wait(self._period):
            self._periods += 1
            store.set(_key(rank()), str(self._own()))
            pulse = store.get(PULSE)
            self._note(0, pulse, self._now)
            _, code, sentence = pulse.decode().split(" ", 2)
            if sentence:
                self._end(_Verdict(sentence, ExitCode(int(code)), by_main=True))  # type: ignore[call-arg]

    def _own(self) -> _Sign:
        # twice the patience, so that a stopped process is first recognised as stopped
        still = self._doing not in SLOW and self._now - self._last_beat > 2 * self._patience
        return _Sign(self._periods, self._beats, self._doing, LOST if self._leaving else STILL if still else WELL)

    def _how(self) -> set[str]:
        """The states of all ranks' main threads, on rank 0."""
        return {self._own().how, *(text.decode().rpartition(" ")[2] for text in self._signs.values())}

    def _begin(self) -> None:
        """Start as if all ranks had just given a sign, so that a rank that never gives one also becomes silent."""
        self._last_beat = self._looked = self._now
        watched = range(1, world_size()) if is_main() else [0]
        self._signs = dict.fromkeys(watched, UNKNOWN)
        self._changed = dict.fromkeys(watched, self._now)

    def _note(self, other: int, text: bytes, now: float) -> None:
        if self._signs[other] != text:
            self._signs[other], self._changed[other] = text, now

    def _watch(self) -> None:
        before = time.monotonic()
        while not self._over.wait(self._period):
            now = time.monotonic()
            self._count(now - before)
            before = now
            verdict = self._verdict()
            if verdict is not None:
                self._found = verdict
                if is_main():
                    with suppress(*STORE_ERRORS):  # the store may just have ended
                        if (store := control_store()) is not None:
                            self._publish(store)
                self._end(verdict)

    def _count(self, seconds: float) -> None:
        """Add the time of a period. If it took more than two periods, this process was stopped or got no CPU time."""
        self._now += min(seconds, 2 * self._period)
        if seconds > self._patience:
            # ranks that were stopped together with this one may wake later
            self._begin()

    def _verdict(self) -> _Verdict | None:
        """Which rank is silent, gone or standing still; None if all are well."""
        if self._store is not None and not is_main():
            # rank 0 finds everything else; its store may not answer, so the time since its last sign counts until now
            silence = self._now - self._changed[0]
            if silence <= self._patience:
                return None
            return self._silent([0], silence) if self._served else self._gone([0])
        lost, patience = self._lost, min(GONE, self._patience) if self._lost else self._patience
        silent = {other: self._looked - seen for other, seen in self._changed.items() if self._looked - seen > patience}
        if silent:
            return self._gone(list(silent)) if lost else self._silent(list(silent), min(silent.values()))
        if STILL not in self._how():
            return None
        signs = {rank(): self._own(), **{other: _Sign.read(text) for other, text in self._signs.items()}}
        least = min(sign.beats for sign in signs.values())
        behind = sorted(other for other, sign in signs.items() if sign.beats == least)
        seconds = f"for over {2 * self._patience:.0f} seconds"
        if len(behind) < len(signs):
            return self._hung(f"{self._named(behind)} is alive but has made no progress {seconds}", behind[0])
        return self._hung(f"No rank has made progress {seconds}, and none is behind the others", rank())

    def _silent(self, ranks: list[int], seconds: float) -> _Verdict:
        return self._hung(f"{self._named(ranks)} has not responded for {seconds:.0f} seconds", ranks[0])

    def _hung(self, what: str, who: int) -> _Verdict:
        stacks = f"; the stacks of the waiting ranks are in {self._folder}" if self._folder else ""
        return _Verdict(f"{what} while {self._last_seen(who)}{stacks}.", ExitCode.HUNG, by_main=is_main())

    def _gone(self, ranks: list[int]) -> _Verdict:
        return _Verdict(
            f"{self._named(ranks)} ended without a message while {self._last_seen(ranks[0])}; check its last output "
            "and whether its machine had memory left.",
            ExitCode.LOST,
            by_main=is_main(),
        )

    def _last_seen(self, other: int) -> str:
        """What a rank did last; if that is not known, what this rank is doing."""
        known = self._signs[other] if is_main() and other in self._signs else UNKNOWN
        return self._doing if known == UNKNOWN else _Sign.read(known).doing

    def _named(self, ranks: list[int]) -> str:
        """Ranks and their hosts, as the beginning of a sentence."""
        on: dict[str, list[str]] = {}
        for number in ranks[:NAMED]:
            on.setdefault(self._hosts.get(number, ""), []).append(str(number))
        parts = [", ".join(numbers) + (f" on {host}" if host else "") for host, numbers in on.items()]
        more = f" and {len(ranks) - NAMED} more" if len(ranks) > NAMED else ""
        return f"Rank {', '.join(parts)}{more}"

    def _end(self, verdict: _Verdict) -> None:
        with self._ending:
            self._found = verdict
            if self._leaving:
                self._heard.set()
            if self._leaving or self._over.is_set():
                return
            self._over.set()
        if verdict.told_here():
            with suppress(OSError, ValueError):  # stderr may be closed
                print(f"error: {verdict.sentence}", file=sys.stderr, flush=True)
        writing = threading.Thread(target=self._write, args=(verdict,), name="last words", daemon=True)
        writing.start()
        writing.join(WRITING)
        # the launcher ends the other ranks when the first exits, so give them time to write their stacks
        time.sleep(2 * self._period + 1)
        end_workers()
        self._leave(verdict.code)

    def _write(self, verdict: _Verdict) -> None:
        """Write the verdict first, then the stack of every thread."""
        if verdict.told_here():
            self._report(verdict.sentence, verdict.code)
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / f"rank-{rank()}.txt").open("w", encoding="utf-8", buffering=1) as stacks:
            stacks.write(f"rank {rank()} on {host_name()}, process {os.getpid()}: {verdict.sentence}\n")
            # not faulthandler, which may crash when threads begin or end while it reads their stacks
            names = {thread.ident: thread.name for thread in threading.enumerate()}
            for ident, newest in sys._current_frames().items():
                stacks.write(f"\nThread {names.get(ident, ident)}, the most recent call first:\n")
                for frame, line in traceback.walk_stack(newest):
                    stacks.write(f'  File "{frame.f_code.co_filename}", line {line} in {frame.f_code.co_name}\n')


def _key(number: int) -> str:
    return f"sign of rank {number}"
