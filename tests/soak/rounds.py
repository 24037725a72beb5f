"""The rounds of a soak: launch, do something to it, wait until nothing is left, look."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any

from diffcse_scale.foundation.exit_codes import ExitCode
from diffcse_scale.foundation.run_files import INCARNATIONS
from tests.soak import checks
from tests.soak.bench import Bench, Row
from tests.soak.kills import CHECKPOINT, EVALUATION, KINDS, START, TRAINING, Kind, Moment, choose_victim, owns
from tests.soak.launch import RANKS, Launch
from tests.soak.world import CHECKPOINT_EVERY, STEPS
from tests.support.file_events import variable

LEFT_TO_END, LAUNCHED_AGAIN = "left to end", "launched again when finished"
UNHARMED = (LEFT_TO_END, LAUNCHED_AGAIN)
PATIENCE = 300.0  # seconds for what must happen some time
AT_WORK = 60.0  # seconds for which a run that is to be taken over goes on at least


def soak(bench: Bench, kinds: list[str]) -> Iterator[Row]:
    """A round for each kind; and whenever a run is near its end, and at last, one more in which it may end."""
    number = 0
    for number, kind in enumerate(kinds, 1):
        if bench.run.result() is not None:
            bench.next_run()
        yield play(bench, number, kind)
        if near_its_end(bench):
            yield play(bench, number, LEFT_TO_END)
    if bench.run.result() is None:
        yield play(bench, number, LEFT_TO_END)
    yield play(bench, number, LAUNCHED_AGAIN)


def deck(rounds: int, rng: random.Random) -> list[str]:
    """Kinds in random order, all before one comes again."""
    kinds = [kind for kind in ROUNDS if kind not in UNHARMED]
    cards: list[str] = []
    while len(cards) < rounds:
        cards += rng.sample(kinds, len(kinds))
    return cards[:rounds]


def near_its_end(bench: Bench) -> bool:
    """Whether the current run has too little left for a round."""
    return bench.run.newest() > STEPS - 2 * CHECKPOINT_EVERY and bench.run.result() is None


def play(bench: Bench, number: int, kind: str) -> Row:
    """One round with the current run."""
    began = time.time()
    row = Row(number, kind, bench.number, resumed=bench.run.newest())
    ROUNDS[kind](bench, row)
    row.newest, row.finished = bench.run.newest(), bench.run.result() is not None
    row.deviation = checks.largest_deviation(bench.run, bench.truth)
    row.violations += checks.folder_is_sound(bench.run, bench.truth)
    if row.finished:
        row.violations += checks.same_end(bench.run, bench.truth)
    row.seconds = round(time.time() - began, 1)
    return row


def strike(kind: Kind, bench: Bench, row: Row) -> None:
    """One launch, ended in one of the ways."""
    row.victim = choose_victim(kind, bench.rng)
    moment = Moment.draw(bench.rng, kind.moments, row.resumed, bench.seconds)
    launch = bench.launch(*kind.options)
    came = moment.wait(launch, bench.run, row.victim)
    _note(bench, row, launch, moment.phase)
    if came:
        kind.action(launch, bench.run, row.victim)
    codes = kind.codes | (kind.early if row.state == "starting" else set())
    _end(bench, row, launch, codes, kind.gone_after)
    if row.code == ExitCode.HUNG:
        row.violations += checks.hang_is_explained(bench.run, launch, row.victim)
    _compare(bench, row, launch, row.resumed, kind.graceful)


def let_it_end(bench: Bench, row: Row) -> None:
    """One launch to which nothing is done."""
    launch = bench.launch()
    launch.wait_until(lambda: False, PATIENCE)
    _note(bench, row, launch, "")
    _end(bench, row, launch, {ExitCode.FINISHED}, 30)
    _compare(bench, row, launch, row.resumed, graceful=False)


def take_over(freeze: bool, bench: Bench, row: Row) -> None:
    """A job's second incarnation begins while the first is at work, or frozen and later set free; it is killed."""
    run, job = bench.run, {"SLURM_JOB_ID": str(1000 + row.round)}
    moment = Moment.draw(bench.rng, (START, TRAINING, EVALUATION, CHECKPOINT), row.resumed, bench.seconds)
    if not freeze:
        moment = Moment(START, row.resumed, bench.rng.uniform(0, bench.seconds[START]))
    pause = 0.0 if freeze else AT_WORK / (STEPS - row.resumed)
    older = bench.launch(pause=pause, variables={**job, "SLURM_RESTART_COUNT": "0"})
    moment.wait(older, run, "")
    if freeze:
        older.signal(signal.SIGSTOP)
        _note(bench, row, older, moment.phase)
    newer = bench.launch(variables={**job, "SLURM_RESTART_COUNT": "1"})
    newer.wait_until(lambda: owns(newer, run), PATIENCE)
    taken_over = time.time()
    if not freeze:
        _note(bench, row, older, TRAINING)
    half_written = run.half_written()
    # until its first step the older one's last checkpoint may still be there alone
    newer.wait_until(lambda: newer.begun() is not None, PATIENCE)
    before, row.resumed = row.resumed, run.newest()
    if freeze:
        free_at = row.resumed + bench.rng.randint(1, 8)
        newer.wait_until(lambda: _has_begun(newer, free_at), PATIENCE)
        older.signal(signal.SIGCONT)
    _end(bench, row, older, {ExitCode.SUPERSEDED}, 60)
    row.violations += checks.stopped_at_once(older, taken_over)
    killed_at = row.resumed + bench.rng.randint(8, 16)
    newer.wait_until(lambda: _has_begun(newer, killed_at), PATIENCE)
    newer.signal(signal.SIGKILL)
    row.violations += checks.nothing_left(newer, 30)
    row.violations += checks.steps_continue(older, before, bench.truth)
    # what the older one did later was not its to keep
    begun = older.begun(until=taken_over)
    row.violations += checks.work_is_kept(begun, before, row.resumed, half_written, graceful=False)
    _compare(bench, row, newer, row.resumed, graceful=False)


def disk_fails(bench: Bench, row: Row) -> None:
    """One call that changes a file fails, on one rank: it ends in one sentence, or goes on without what is lost."""
    error = bench.rng.choice(("ENOSPC", "EDQUOT", "EIO", "EROFS", "ESTALE"))
    _let_fail(bench, row, error, bench.rng.randint(1, 60), {ExitCode.MISTAKE, ExitCode.FINISHED})
    if row.code == ExitCode.MISTAKE:
        row.violations += checks.failure_is_told(bench.run, error)


def file_server_stumbles(bench: Bench, row: Row) -> None:
    """One look at a file fails, on one rank, as when a file server begins again; the run goes on."""
    _let_fail(bench, row, "ESTALE", bench.rng.randint(1, 300), {ExitCode.FINISHED}, named=INCARNATIONS, reads=True)


def _let_fail(bench: Bench, row: Row, error: str, at: int, codes: set[int], **options: Any) -> None:
    rank = bench.rng.randrange(RANKS)
    row.victim = f"rank {rank} {error}"
    launch = bench.launch(variables=variable([bench.run.path], error, at, rank=rank, **options))
    launch.wait_until(lambda: False, PATIENCE)
    _note(bench, row, launch, "")
    _end(bench, row, launch, codes, 60)
    _compare(bench, row, launch, row.resumed, graceful=False)


def _has_begun(launch: Launch, step: int) -> bool:
    return (launch.begun() or 0) >= min(step, STEPS)


def _note(bench: Bench, row: Row, launch: Launch, phase: str) -> None:
    """What the run is doing now."""
    row.phase, row.begun = phase, launch.begun()
    row.state = bench.run.state() if owns(launch, bench.run) or row.begun is not None else "starting"


def _end(bench: Bench, row: Row, launch: Launch, codes: Collection[int], seconds: float) -> None:
    """Wait for the end of all processes, and hold the exit code against those that are documented."""
    row.violations += checks.nothing_left(launch, seconds)
    row.code = launch.process.returncode
    # what is done to a run may come too late, as its last deed is to write the result
    late = {ExitCode.FINISHED} if bench.run.result() is not None else set()
    if row.code not in {*codes, *late}:
        row.violations.append(f"exit code {row.code} instead of {' or '.join(map(str, map(int, codes)))}")


def _compare(bench: Bench, row: Row, launch: Launch, resumed: int, graceful: bool) -> None:
    """What a launch that has ended has done, with what it had to do."""
    newest, begun = bench.run.newest(), launch.begun()
    row.violations += checks.steps_continue(launch, resumed, bench.truth)
    if bench.run.result() is None:
        row.lost = 0 if begun is None else begun - newest
        row.violations += checks.work_is_kept(begun, resumed, newest, bench.run.half_written(), graceful)


TAKEN_OVER, TAKEN_OVER_FROZEN = "taken over", "taken over while frozen"
ROUNDS: dict[str, Callable[[Bench, Row], None]] = {
    **{name: partial(strike, kind) for name, kind in KINDS.items()},
    TAKEN_OVER: partial(take_over, False),
    TAKEN_OVER_FROZEN: partial(take_over, True),
    "disk fails": disk_fails,
    "file server stumbles": file_server_stumbles,
    LEFT_TO_END: let_it_end,
    LAUNCHED_AGAIN: let_it_end,
}
