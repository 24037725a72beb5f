"""Requests from outside to end a run: signals, the stop file, a dead launcher, a later incarnation of the run.

A signal may reach only one rank, and at any moment, so it only sets a flag. About once a second all ranks begin to
exchange their flags, at the same `tick` (a step, or a batch of an evaluation). In training they read the answer at the
tick at which the next exchange begins. So no step waits for other hosts, and the cost of a step without an exchange
does not grow with the number of hosts.

Some launchers, such as DeepSpeed's, do not pass signals on to their ranks. For them there is the file `stop` in the run
folder, which is checked when an exchange begins.

Before training begins, a main thread may wait long for a lock or for its workers. Then another thread checks the flags
and passes them on through the store that all ranks share. A second Ctrl-C ends the run at once.
"""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from diffcse_scale.checkpoints.checkpoint import Checkpoints
from diffcse_scale.distributed import Agreement, agree, is_main
from diffcse_scale.foundation.errors import RunEnded
from diffcse_scale.foundation.exit_codes import Reason
from diffcse_scale.foundation.signals import GRACE, TOGETHER, end_at_once, listen
from diffcse_scale.rendezvous import STORE_ERRORS, Store, control_store
from diffcse_scale.runs.directory import RunDirectory
from diffcse_scale.supervision.beginning import interrupts, leave_at_once
from diffcse_scale.supervision.launchers import LAUNCHERS, alive
from diffcse_scale.supervision.watchdog import Watchdog

SIGNALS = {
    signal.SIGUSR1: Reason.USR1,
    signal.SIGTERM: Reason.TERM,
    signal.SIGHUP: Reason.HUP,
    signal.SIGINT: Reason.INT,
}
# content of a stop file: like USR1, it asks for a restart
REQUEUE = "requeue"
# seconds between two exchanges of requests; files and launchers are checked about as often
LOOK = 1.0
# seconds within which a signal reaches all processes that it is sent to
SPREAD = 0.1
STOP_KEY = "stop"


class _LeaveNow(BaseException):
    """Raised wherever the main thread is. A BaseException, so that no library handles it as an ordinary error."""


class StopRequested(Exception):
    """Raised on every rank when all ranks have agreed to stop."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.words)
        self.reason = reason


class _Pace:
    """Decides at which ticks ranks exchange their flags: about every `LOOK` seconds, at the same ticks on all ranks.

    The number of ticks between two exchanges follows from the slowest rank's time per tick, which is exchanged with the
    flags. It at most doubles from one exchange to the next, so that a few fast steps do not make it large.
    """

    def __init__(self) -> None:
        self._every, self._ticks = 1, 0
        self._since = time.monotonic() - LOOK  # the time of a tick is not known yet, so assume LOOK seconds

    def due(self) -> bool:
        """Whether an exchange begins at this tick."""
        self._ticks += 1
        return self._ticks >= self._every

    def lap(self) -> int:
        """The microseconds per tick on this rank since the last exchange. Called when the next exchange begins."""
        now = time.monotonic()
        taken = (now - self._since) / self._ticks
        self._ticks, self._since = 0, now
        return round(taken * 1e6)

    def follow(self, microseconds: int) -> None:
        """Set the number of ticks to the next exchange, from the slowest rank's `microseconds` per tick."""
        self._every = max(1, min(2 * self._every, math.ceil(LOOK * 1e6 / max(1, microseconds))))


class Supervision:
    """Collects requests to stop, from its creation on. Every rank has one.

    Args:
        run: the run to stop.
        watchdog: is told that the main thread makes progress.
    """

    def __init__(self, run: RunDirectory, watchdog: Watchdog) -> None:
        self._run, self._watchdog = run, watchdog
        self._received = Reason.NONE
        self._leave_now: Reason | None = None  # a reason that was passed on to all ranks
        self._interruptible = False  # whether an exception of the signal handler is caught
        self._looked = -LOOK
        self._doing, self._pace = "", _Pace()
        self._asked: tuple[Agreement, int | None] | None = None
        listen(self._receive)
        interrupts.heard = self._interrupted

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._interruptible and self._leave_now is not None:
            self._interruptible = False
            raise _LeaveNow
        self._received = max(self._received, SIGNALS[signal.Signals(number)])

    def _interrupted(self, seconds: float) -> None:
        if seconds > TOGETHER:
            leave_at_once(
                "Interrupted again: ended without a new checkpoint; continue from the newest with --auto-resume."
            )

    @contextmanager
    def preparing(self) -> Iterator[Supervision]:
        """Inside, before training, all ranks leave within seconds of a request to one, because nothing must be saved.

        Yields itself.

        Raises:
            RunEnded: a request has come. It replaces any exception raised meanwhile: the same signal may end the
                workers of a library, which then complains, and an interrupted library may raise its own error.
        """
        over = threading.Event()
        looking = threading.Thread(target=self._look_while_preparing, args=(over,), name="requests", daemon=True)
        looking.start()
        failure: BaseException | None = None
        try:
            self._interruptible = True
            try:
                yield self
            finally:
                self._interruptible = False
        except BaseException as raised:
            failure = raised
            time.sleep(SPREAD)
        over.set()
        looking.join(2 * LOOK)
        told, self._leave_now = self._leave_now, None
        reason = told or self._received
        if failure is None:
            # a request may have come too late for the thread, or for some ranks' threads
            (answer,) = agree(max(told or Reason.NONE, self._request()))
            reason = Reason(answer)
        elif reason and told is None:
            self._pass_on(reason, control_store(), threading.Event())
        if reason:
            raise self.ended(reason, None, 0, None) from None
        if failure is not None:
            raise failure

    def _look_while_preparing(self, over: threading.Event) -> None:
        store = control_store()
        while not over.wait(LOOK / 4):
            try:
                reason = _published(store) or self._request()
            except OSError:  # from a file server; the main thread meets it too, and reports it
                continue
            if not reason:
                continue
            self._pass_on(reason, store, over)
            self._leave_now = reason
            if over.is_set():
                return
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            if not over.wait(GRACE):
                end = self.ended(reason, None, 0, None)
                if is_main():
                    print(end, file=sys.stderr, flush=True)
                self._run.__exit__(RunEnded, end, None)
                end_at_once(end.exit_code)
            return

    def _pass_on(self, reason: Reason, store: Store | None, over: threading.Event) -> None:
        """Tell the other ranks, which check the store while they prepare."""
        if store is not None:
            with suppress(*STORE_ERRORS):
                store.set(STOP_KEY, str(int(reason)))
            over.wait(2 * LOOK if is_main() else 0)  # the main rank serves the store; the others must read it first

    def _request(self, at_once: bool = False) -> Reason:
        reason = self._received
        if at_once or time.monotonic() - self._looked >= LOOK / 2:
            self._looked = time.monotonic()
            if not all(map(alive, LAUNCHERS)):
                self._received = reason = max(reason, Reason.LAUNCHER)
            if is_main():
                if not self._run.owned():
                    return Reason.SUPERSEDED
                reason = max(reason, self._stop_file())
        return reason

    def _stop_file(self) -> Reason:
        if self._run.is_trial:
            return Reason.NONE  # the file is meant for a run, not for a trial
        try:
            text = self._run.stop_file.read_text(encoding="utf-8")
        except OSError:
            return Reason.NONE
        return Reason.REQUEUE_FILE if text.strip() == REQUEUE else Reason.STOP_FILE

    def tick(self, doing: str, checkpoints: Checkpoints | None = None) -> None:
        """Called by the main thread of every rank, at the same points, where the run can be stopped.

        Args:
            doing: for the watchdog and the status: "training", "evaluating", "exporting".
            checkpoints: their pending checkpoint is completed when all ranks have written it.

        Raises:
            StopRequested: some rank was asked to stop.
        """
        self._watchdog.beat(doing)
        self._run.status.update(state=doing)
        if doing != self._doing:
            self._doing, self._pace = doing, _Pace()
        if not self._pace.due():
            return
        pending = None if checkpoints is None else checkpoints.pending
        self._settle(checkpoints)
        writing = checkpoints is not None and checkpoints.writing()
        # check at once before exporting, to overwrite nothing that another process has written meanwhile
        request = self._request(at_once=doing == "exporting")
        self._asked = Agreement(request, writing, self._pace.lap()), pending
        if doing != "training":
            self._settle(checkpoints)

    def _settle(self, checkpoints: Checkpoints | None) -> None:
        """Act on the answer of the previous exchange, if there was one."""
        if self._asked is None:
            return
        (agreement, pending), self._asked = self._asked, None
        reason, writing_somewhere, slowest = agreement.answer()
        self._pace.follow(slowest)
        if reason:
            raise StopRequested(Reason(reason))
        # another checkpoint may have begun since
        if checkpoints is not None and pending is not None and pending == checkpoints.pending:
            checkpoints.commit_if_written(bool(writing_somewhere))

    @contextmanager
    def slowly(self, doing: str) -> Iterator[None]:
        """Inside, all ranks do something slow and are not taken for hung."""
        self._watchdog.beat(doing)
        yield
        self._watchdog.beat("training")

    def ended(self, reason: Reason, checkpoint: str | None, step: int, steps: int | None) -> RunEnded:
        """The exception that ends every rank for `reason`, after everything is saved.

        Args:
            steps: None before training.
        """
        where = "before training began" if steps is None else f"after step {step} of {steps}"
        if reason is Reason.SUPERSEDED:
            message = (
                f"A later incarnation has taken over {self._run.path}; this one stopped {where} and wrote nothing more."
            )
            return RunEnded(message, reason.exit_code)
        if is_main() and not self._run.is_trial:
            self._run.stop_file.unlink(missing_ok=True)
        saved = f"{checkpoint} is complete; " if checkpoint else ""
        message = f"Stopped by {reason.words} {where}; {saved}continue with --auto-resume."
        return RunEnded(message, reason.exit_code)


def _published(store: Store | None) -> Reason:
    try:
        return Reason(int(store.get(STOP_KEY))) if store is not None and store.check([STOP_KEY]) else Reason.NONE
    except STORE_ERRORS:
        return Reason.NONE  # rank 0 has exited; the launcher or the next collective ends this rank
