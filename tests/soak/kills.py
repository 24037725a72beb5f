"""What a round does to a launch, and when: kinds of ends, moments, and the exit codes that they may have."""

from __future__ import annotations

import contextlib
import random
import signal
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import psutil

from diffcse_scale.foundation.exit_codes import ExitCode
from tests.soak.launch import RANKS, Launch
from tests.soak.world import CHECKPOINT_EVERY, EVALUATION_EVERY, STEPS, Run

STEPS_A_ROUND = 20  # a round goes on for at most so many
HANG_TIMEOUT = 8.0  # of the rounds in which a rank is stopped
WRITING = 0.03  # seconds that the writing of a toy checkpoint takes, about

START, TRAINING, EVALUATION, CHECKPOINT, END = "start-up", "training", "evaluation", "checkpoint", "end"
WEIGHTS = {START: 3, TRAINING: 6, EVALUATION: 4, CHECKPOINT: 4, END: 2}
AT_WORK = (TRAINING, EVALUATION, CHECKPOINT)
HANGS = ("--hang-timeout", str(HANG_TIMEOUT))


def send(number: signal.Signals, launch: Launch, run: Run, victim: str) -> None:
    """A signal to one process."""
    process = launch.find(victim)
    with contextlib.suppress(psutil.NoSuchProcess):
        assert process is not None
        process.send_signal(number)


def send_to_all(number: signal.Signals, launch: Launch, run: Run, victim: str) -> None:
    """A signal to every process: as when a machine fails, or as a terminal does."""
    launch.signal(number)


def pause_all(launch: Launch, run: Run, victim: str) -> None:
    """As `scontrol suspend` does, for longer than a hang takes; then a request to stop."""
    launch.signal(signal.SIGSTOP)
    time.sleep(1.5 * HANG_TIMEOUT)
    launch.signal(signal.SIGCONT)
    time.sleep(1.0)
    send(signal.SIGTERM, launch, run, victim)


def write_stop_file(launch: Launch, run: Run, victim: str) -> None:
    """As somebody does who cannot send signals."""
    (run.path / "stop").touch()


class Kind(NamedTuple):
    """A way to end a run.

    Attributes:
        action: does it to a launch, its run and the victim.
        victim: the process concerned, as `Launch.find` names it; "rank" for any, "" for none.
        codes: what the main launcher may leave with.
        early: and besides while Python imports libraries, before a rank hears signals and watches the others.
        graceful: whether the run saves the step that it is at before it leaves.
        options: of train.py.
        gone_after: seconds after which no process may be left.
        moments: when it is done.
    """

    action: Callable[[Launch, Run, str], None]
    victim: str
    codes: set[int]
    early: frozenset[int] = frozenset()
    graceful: bool = False
    options: tuple[str, ...] = ()
    gone_after: float = 30.0
    moments: tuple[str, ...] = tuple(WEIGHTS)


# A launcher whose rank died leaves with the code of the rank that it looks at first: the dead one, or one that failed
# because the dead did not answer.
DEAD_RANK = {256 - signal.SIGKILL, ExitCode.FAILED}
# one that is itself interrupted has a traceback of its own, or dies of the signal
INTERRUPTED = {128 + signal.SIGINT, -signal.SIGINT, ExitCode.FAILED}
KINDS = {
    "rank killed": Kind(partial(send, signal.SIGKILL), "rank", DEAD_RANK),
    "rank killed while it writes": Kind(partial(send, signal.SIGKILL), "rank", DEAD_RANK, moments=(CHECKPOINT,)),
    # DeepSpeed's main launcher does not tell that its node launcher was killed
    "node launcher killed": Kind(partial(send, signal.SIGKILL), "node launcher", {0}, graceful=True),
    "main launcher killed": Kind(partial(send, signal.SIGKILL), "main launcher", {-signal.SIGKILL}, graceful=True),
    "everything killed": Kind(partial(send_to_all, signal.SIGKILL), "main launcher", {-signal.SIGKILL}),
    "TERM to a rank": Kind(
        partial(send, signal.SIGTERM), "rank", {ExitCode.STOPPED}, frozenset({256 - signal.SIGTERM}), graceful=True
    ),
    "USR1 to a rank": Kind(
        partial(send, signal.SIGUSR1), "rank", {ExitCode.PREEMPTED}, frozenset({256 - signal.SIGUSR1}), graceful=True
    ),
    "paused, then TERM to a rank": Kind(
        pause_all, "rank", {ExitCode.STOPPED}, graceful=True, options=HANGS, moments=AT_WORK
    ),
    "Ctrl-C": Kind(partial(send_to_all, signal.SIGINT), "", INTERRUPTED, graceful=True, moments=AT_WORK),
    "terminal closed": Kind(partial(send_to_all, signal.SIGHUP), "", {-signal.SIGHUP}, graceful=True, moments=AT_WORK),
    "stop file": Kind(write_stop_file, "", {ExitCode.STOPPED}, graceful=True),
    "rank stopped (SIGSTOP)": Kind(
        partial(send, signal.SIGSTOP),
        "rank",
        {ExitCode.HUNG},
        frozenset({ExitCode.MISTAKE}),  # it has not come to where the ranks meet
        options=HANGS,
        gone_after=HANG_TIMEOUT + 45,  # the launcher waits 30 s for it to obey TERM, which it cannot
    ),
}


class Moment(NamedTuple):
    """A phase of the run, the step of it (steps begun), and so many seconds later."""

    phase: str
    step: int
    delay: float

    @classmethod
    def draw(cls, rng: random.Random, phases: tuple[str, ...], done: int, seconds: dict[str, float]) -> Moment:
        """A moment of a run that continues after `done` steps; in training where the phase does not come any more.

        Args:
            seconds: how long start-up (of a rank), a step of training and the end last.
        """
        (phase,) = rng.choices(phases, [WEIGHTS[phase] for phase in phases])
        if phase in (START, END):
            return cls(phase, STEPS if phase == END else done, rng.uniform(0, seconds[phase]))
        every = {EVALUATION: EVALUATION_EVERY, CHECKPOINT: CHECKPOINT_EVERY}.get(phase, 1)
        steps = [step for step in range(done + 1, min(done + STEPS_A_ROUND, STEPS - 1) + 1) if step % every == 0]
        if not steps:
            phase, steps = TRAINING, [done + 1]
        return cls(phase, rng.choice(steps), rng.uniform(0, WRITING if phase == CHECKPOINT else seconds[TRAINING]))

    def wait(self, launch: Launch, run: Run, victim: str) -> bool:
        """Whether it came before the launch ended by itself; the victim, if there is one, is there then."""
        came = launch.wait_until(lambda: self._has_come(launch, run, victim), 300)
        launch.wait_until(lambda: self.phase == START and launch.begun() is not None, self.delay)
        return came and not launch.ended()

    def _has_come(self, launch: Launch, run: Run, victim: str) -> bool:
        if victim and launch.find(victim) is None:
            return False
        if self.phase == START:
            # a stop file that is older than the ranks counts as meant for the run before
            return bool(victim) or owns(launch, run)
        begun = launch.begun() or 0
        if self.phase == CHECKPOINT and begun == self.step:
            return self.step in run.half_written()
        if self.phase == EVALUATION and begun == self.step:
            return run.state() == "evaluating"
        return begun > self.step or (begun == self.step and self.phase in (TRAINING, END))


def owns(launch: Launch, run: Run) -> bool:
    """Whether the newest incarnation of the run is that of `launch`."""
    lines = run.incarnations()
    return bool(lines) and lines[-1].began > launch.began


def choose_victim(kind: Kind, rng: random.Random) -> str:
    """A process's name, as `Launch.find` knows it."""
    return f"rank {rng.randrange(RANKS)}" if kind.victim == "rank" else kind.victim
