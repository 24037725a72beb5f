"""A checkpoint is whole or is not used, and says what was when it was taken. On two ranks, at ZeRO-2, in one launch."""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from diffcse_scale.checkpoints import shards
from diffcse_scale.checkpoints.checkpoint import Checkpoints
from diffcse_scale.checkpoints.manifest import checkpoint_steps
from diffcse_scale.distributed import agree, barrier, gather_objects, rank
from diffcse_scale.foundation.environment import host_name
from diffcse_scale.foundation.errors import InputError, RunEnded, exit_code_of
from diffcse_scale.foundation.exit_codes import ExitCode
from tests.support.ranks import run_ranks
from tests.support.small_disk import small_disk
from tests.support.small_engine import small_engine, train_step, whole_state

SHARD = "zero_pp_rank_{}_mp_rank_00_optim_states.pt"


class Cases:
    """Each method but the first is a case, run on all ranks alike; what it returns is asserted by its test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.engine = small_engine("2")
        self.warnings: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: self.warnings.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger("diffcse_scale").addHandler(handler)

    def _saved(self, name: str, steps: tuple[int, ...] = (1, 2), **options: Any) -> Checkpoints:
        """A folder with a checkpoint after each of `steps`, with one training step before each."""
        checkpoints = Checkpoints(self.engine, self.folder / name, **{"keep": 9, "background": False, **options})
        checkpoints.begin()
        for step in steps:
            train_step(self.engine, step)
            checkpoints.save(step, {"best": {}})
        return checkpoints

    def _after(self, name: str, damage: Any) -> tuple[Any, list[str]]:
        """What loading `name` gives after the main rank has done `damage` to its folder, and what is said."""
        if rank() == 0:
            damage(self.folder / name)
        barrier()
        self.warnings.clear()
        try:
            state = Checkpoints(self.engine, self.folder / name).load()
        except InputError as error:
            return str(error), []
        return state and state["step"], list(self.warnings)

    def in_the_background(self) -> Any:
        write = shards._write

        def slowly(content: Any, path: Path) -> Any:
            time.sleep(0.5)  # training goes on meanwhile, and changes every tensor
            return write(content, path)

        shards._write = slowly
        checkpoints = Checkpoints(self.engine, self.folder / "background")
        checkpoints.begin()
        train_step(self.engine, 0)
        truth = whole_state(self.engine)
        start = time.perf_counter()
        checkpoints.save(1, {"best": {}})
        waited = time.perf_counter() - start
        was_writing = checkpoints.writing()
        losses = [train_step(self.engine, step) for step in (1, 2)]
        checkpoints.finish()
        shards._write = write
        Checkpoints(self.engine, self.folder / "background").load()
        found = whole_state(self.engine)
        same = all(torch.equal(truth[name], found[name]) for name in truth)
        return same, was_writing, waited, losses == [train_step(self.engine, step) for step in (1, 2)]

    def what_stays(self) -> Any:
        checkpoints = Checkpoints(self.engine, self.folder / "stay", keep=2, background=False)
        kept = []
        for step, score in enumerate((None, 9.0, float("nan"), 4.0, None, 12.0), start=1):
            checkpoints.save(step, {"best": {}, "score": score})
            kept.append(checkpoint_steps(self.folder / "stay"))
        return kept

    def going_back(self) -> Any:
        """A checkpoint of an earlier step than the newest, as after skipped steps."""
        checkpoints = self._saved("back", (4, 6), keep=1)
        checkpoints.save(5, {"best": {}})
        return self._after("back", lambda folder: None), checkpoint_steps(self.folder / "back")

    def damaged(self) -> Any:
        """The newest of two is damaged, in one of several ways; then all are."""
        shard = SHARD.format(1)

        def flip(file: Path) -> None:
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 1
            file.write_bytes(content)

        ways = {
            "flipped": lambda folder: flip(folder / "step-00000002" / shard),
            "truncated": lambda folder: (folder / "step-00000002" / shard).write_bytes(b"short"),
            "json": lambda folder: (folder / "step-00000002" / "training_state.json").write_text('{"step'),
            "manifest": lambda folder: (folder / "step-00000002" / "manifest.json").unlink(),
            "dangling": lambda folder: (folder / "latest").write_text("step-00000007\n"),
            "missing": lambda folder: (folder / "latest").unlink(),
        }
        found = {}
        for name, damage in ways.items():
            self._saved(name)
            found[name] = self._after(name, damage)
        found["all"] = self._after("flipped", lambda folder: flip(folder / "step-00000001" / shard))
        return found

    def half_written(self) -> Any:
        self._saved("half", (1,))
        loaded = self._after("half", lambda folder: (folder / "step-00000009.partial-1f2e3d4c").mkdir())
        return loaded, sorted(entry.name for entry in (self.folder / "half").glob("step-*"))

    def none_yet(self) -> Any:
        Checkpoints(self.engine, self.folder / "none").begin()
        return self._after("none", lambda folder: None)

    def superseded(self) -> Any:
        """A later incarnation takes the run over while this one is writing."""
        owner = [True]
        checkpoints = self._saved("superseded", (1,), owned=lambda: owner[0])
        owner[0] = False
        said = [self._ended(lambda: checkpoints.save(2, {"best": {}}))]
        assert checkpoints.step == 1
        # what the later one is writing is not this one's to delete
        later = self.folder / "superseded" / "step-00000009.partial-1f2e3d4c"
        if rank() == 0:
            later.mkdir()
        barrier()
        checkpoints.load()
        assert later.is_dir()
        barrier()
        if rank() == 0:
            later.rmdir()
        # and it takes away what this one had half-written, which is no error of the disk
        checkpoints = Checkpoints(self.engine, self.folder / "superseded", owned=lambda: owner[0])
        checkpoints.save(3, {"best": {}})
        barrier()
        for partial in (self.folder / "superseded").glob("step-00000003.partial-*") if rank() == 0 else ():
            shutil.rmtree(partial, ignore_errors=True)
        said.append(self._ended(checkpoints.finish))
        barrier()
        return said, sorted(entry.name for entry in (self.folder / "superseded").iterdir() if entry.is_dir())

    def file_server(self) -> Any:
        """Whether this one has the run cannot be said when a checkpoint is to get its name."""
        answers: list[Any] = []

        def owned() -> bool:
            if answers:
                raise answers[0]
            return True

        checkpoints = self._saved("server", (1,), owned=owned)
        answers.append(OSError(errno.ESTALE, os.strerror(errno.ESTALE), "incarnations.jsonl"))
        said = self._ended(lambda: checkpoints.save(2, {"best": {}}))
        barrier()
        return said, checkpoints.step, [folder.name for folder in (self.folder / "server").glob("step-*")]

    def undeletable(self) -> Any:
        """The oldest checkpoint, which is needed no more, cannot be deleted."""
        remove = os.rmdir

        def refuse(path: Any, **named: Any) -> None:
            if "step-00000001" in str(path):
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))
            remove(path, **named)

        self.warnings.clear()
        os.rmdir = refuse
        try:
            checkpoints = self._saved("busy", (1, 2), keep=1)
        finally:
            os.rmdir = remove
        return checkpoints.step, list(self.warnings)

    def slow_deletion(self) -> Any:
        """A file server takes long to delete the old checkpoint, and the new one is whole."""
        remove, may_go = os.rmdir, threading.Event()

        def slowly(path: Any, **named: Any) -> None:
            may_go.wait(20)
            remove(path, **named)

        def there() -> list[str]:
            names = (entry.name for entry in (self.folder / "slow").glob("step-*"))
            return sorted(re.sub("partial-.*", "partial-", name) for name in names)

        checkpoints = self._saved("slow", (1, 2), keep=1, background=True)
        os.rmdir = slowly
        while checkpoints.pending is not None:
            (writing,) = agree(checkpoints.writing())
            checkpoints.commit_if_written(bool(writing))
        barrier()
        meanwhile = there()
        barrier()
        may_go.set()
        checkpoints.finish()
        barrier()
        os.rmdir = remove
        return checkpoints.step, meanwhile, there()

    def shared_deletion(self) -> Any:
        """What each rank deletes of an old checkpoint, in which there is also a file of a third rank."""
        unlink, deleted = os.unlink, []

        def noting(path: Any, **named: Any) -> None:
            if "step-00000001.partial-" in str(path):
                deleted.append(Path(path).name)
            unlink(path, **named)

        checkpoints = self._saved("shared", (1,), keep=1)
        names = {entry.name for entry in (self.folder / "shared" / "step-00000001").iterdir()}
        barrier()
        if rank() == 0:
            (self.folder / "shared" / "step-00000001" / SHARD.format(2)).touch()
        os.unlink = noting
        checkpoints.save(2, {"best": {}})
        barrier()
        os.unlink = unlink
        return names, sorted(deleted), [entry.name for entry in (self.folder / "shared").glob("step-*")]

    def _ended(self, do: Any) -> tuple[str, int]:
        """What ends a run in `do`, and with which code."""
        try:
            do()
        except (InputError, RunEnded) as end:
            return str(end), exit_code_of(end)
        return "", 0

    def latest(self) -> Any:
        """What `latest` names while a checkpoint is about to get its name."""
        named: list[str] = []
        file = self.folder / "latest" / "latest"

        def owned() -> bool:
            named.extend([file.read_text().strip()] if file.exists() else [])
            return True

        self._saved("latest", (1, 2), owned=owned)
        return [*named, file.read_text().strip()] if rank() == 0 else None

    def disk_full(self) -> Any:
        with small_disk(self.folder / "full") if rank() == 0 else nullcontext(False) as mounted:
            if not gather_objects(mounted)[0]:
                return None
            checkpoints = self._saved("full", (1,))
            barrier()
            if rank() == 0:
                size = 2**20 - sum(file.stat().st_size for file in (self.folder / "full").rglob("*") if file.is_file())
                (self.folder / "full" / "filler").write_bytes(bytes(max(0, size - 80_000)))
            barrier()
            said = ""
            try:
                for step in range(2, 40):
                    checkpoints.save(step, {"best": {}})
            except InputError as error:
                said = str(error)
            barrier()
            last = checkpoint_steps(self.folder / "full")[-1]
            loaded = self._after("full", lambda folder: (folder / "filler").unlink())
            leftovers = list((self.folder / "full").glob("*.partial*"))
            barrier()
            return said, last, loaded, leftovers


CASES = [name for name in vars(Cases) if not name.startswith("_")]


def _run(folder: Path) -> dict[str, Any]:
    cases = Cases(folder)
    return {name: getattr(cases, name)() for name in CASES}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each rank's cases returned."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return run_ranks(_run, 2, folder, folder)


def test_a_checkpoint_written_while_training_goes_on_is_of_the_step_it_was_taken_at(found):
    for same, was_writing, waited, repeats in (one["in_the_background"] for one in found):
        assert same and repeats
        assert was_writing and waited < 0.4  # the writing alone takes a second


def test_the_newest_stay_and_the_best_beside_them(found):
    assert found[0]["what_stays"] == [[1], [1, 2], [2, 3], [2, 3, 4], [2, 4, 5], [5, 6]]


def test_a_checkpoint_of_an_earlier_step_takes_the_place_of_later_ones(found):
    assert found[0]["going_back"] == ((5, []), [5])


@pytest.mark.parametrize("way", ["flipped", "truncated", "json", "manifest"])
def test_damage_in_the_newest_makes_all_ranks_fall_back_to_the_one_before_and_say_so(found, way):
    assert [one["damaged"][way][0] for one in found] == [1, 1]
    (said,) = found[0]["damaged"][way][1]
    assert "step-00000002 is damaged and not used: " in said
    words = {"flipped": "another content", "truncated": "has 5 bytes instead of", "json": "training_state.json"}
    assert words.get(way, "manifest.json is missing") in said


def test_when_none_is_whole_it_is_an_error(found):
    assert all(
        "is complete, although latest names step-00000002; restore one" in one["damaged"]["all"][0] for one in found
    )


def test_a_missing_latest_is_an_error_and_never_a_fresh_start(found):
    for one in found:
        assert "has checkpoints, but " in one["damaged"]["missing"][0]
        assert "write step-00000002 into it" in one["damaged"]["missing"][0]


def test_a_latest_that_names_what_is_not_there_falls_back_and_says_so(found):
    step, said = found[0]["damaged"]["dangling"]
    assert step == 2 and "step-00000007, which latest names, is missing" in said[0]


def test_a_half_written_checkpoint_is_deleted_and_the_whole_one_used(found):
    (step, said), left = found[0]["half_written"]
    assert step == 1 and left == ["step-00000001"]
    assert "step-00000009.partial-1f2e3d4c is half-written" in said[0]


def test_without_a_checkpoint_there_is_nothing_to_load(found):
    assert [one["none_yet"] for one in found] == [(None, [])] * 2


def test_an_incarnation_that_was_superseded_while_writing_leaves_nothing_and_says_so_on_every_rank(found):
    for said, folders in (one["superseded"] for one in found):
        assert folders == ["step-00000001"]
        for (sentence, code), step in zip(said, (2, 3), strict=True):
            assert code == ExitCode.SUPERSEDED
            assert f"checkpoint step-{step:08d} of this one was not kept" in sentence


def test_a_file_server_that_does_not_say_whose_the_run_is_fails_and_makes_nobody_superseded(found):
    for (sentence, code), step, there in (one["file_server"] for one in found):
        reason = f"could not be written by rank 0 on {host_name()} (stale file handle: incarnations.jsonl)"
        assert code == ExitCode.MISTAKE and reason in sentence
        assert "step-00000001 is complete" in sentence and (step, there) == (1, ["step-00000001"])


def test_an_old_checkpoint_that_cannot_be_deleted_is_told_and_ends_nothing(found):
    assert [one["undeletable"][0] for one in found] == [2, 2]
    (warning,) = found[0]["undeletable"][1]
    assert "step-00000001.partial-" in warning
    assert " is no longer needed but cannot be removed (device or resource busy)" in warning


def test_no_rank_waits_until_an_old_checkpoint_is_deleted_which_has_lost_its_name_before(found):
    """So that what a kill leaves of it is never taken for a checkpoint, and is deleted by the next start."""
    names = [["step-00000001.partial-", "step-00000002"], ["step-00000002"]]
    assert [one["slow_deletion"] for one in found] == [(2, *names)] * 2


def test_each_rank_deletes_its_own_files_of_an_old_checkpoint_and_the_main_rank_all_others(found):
    (names, main, left), (_, second, _) = (one["shared_deletion"] for one in found)
    assert second == [SHARD.format(1)]
    assert set(main) == names - {SHARD.format(1)} | {SHARD.format(2)} and SHARD.format(0) in main
    assert left == ["step-00000002"]


def test_latest_names_a_checkpoint_only_when_that_has_its_name(found):
    assert found[0]["latest"] == ["none", "step-00000001", "step-00000002"]


def test_a_full_disk_is_one_sentence_and_leaves_the_checkpoint_before_whole(found):
    if found[0]["disk_full"] is None:
        pytest.skip("this user may not mount a small file system")
    for said, last, loaded, leftovers in (one["disk_full"] for one in found):
        assert f"step-{last + 1:08d}" in said and "(no space left on device" in said
        assert f"step-{last:08d} is complete" in said and said.endswith("continue with --resume.")
        assert loaded[0] == last and not leftovers
