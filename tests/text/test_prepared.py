"""What is whole in the cache is only read; what is damaged or missing is made, by one process or by several at once."""

from __future__ import annotations

import errno
import fcntl
import gc
import logging
import multiprocessing
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

import diffcse_scale.text.tokens
from diffcse_scale.encoding.rows import open_rows
from diffcse_scale.evaluation.tasks import load_sts
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.foundation.locks import shared_lock
from diffcse_scale.generator.wordpiece import wordpiece_of
from diffcse_scale.recipe import DataRecipe
from diffcse_scale.text import digests, prepared
from diffcse_scale.text.cache import cache_folder, try_to_write
from diffcse_scale.text.corpus import load_corpus
from diffcse_scale.text.tokens import new_array, tokenize
from tests.support.file_events import FileEvents, fail
from tests.support.launch import launch, metrics
from tests.support.small_disk import small_disk
from tests.support.text_material import WORDS, make_tokenizer, rows, sentence

PROCESSES = multiprocessing.get_context("fork")
LINES = [sentence(index) for index in range(60)]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache, and a corpus beside it that was written long ago."""
    (tmp_path / "corpus.txt").write_text("\n".join(LINES))
    monkeypatch.setattr(digests, "SETTLED", 0.0)
    monkeypatch.setenv("DIFFCSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def data(cache: Path) -> DataRecipe:
    return DataRecipe.model_validate({"files": str(cache.parent / "corpus.txt"), "workers": 1})


def tokens(cache: Path) -> list[list[int]]:
    return rows(tokenize(data(cache), [make_tokenizer(WORDS)]))


def remote() -> str:
    """An address in memory."""
    system = fsspec.filesystem("memory")
    if not system.exists("/sts/STSB/dev.tsv"):
        system.pipe_file("/sts/STSB/dev.tsv", b"4.5\tA man sings.\tA man is singing.\n0.5\tA dog.\tA bill.\n")
    return "memory://sts"


# everything that is kept in the cache, as what uses it gives it
USES: dict[str, Callable[[Path], object]] = {
    "tokens": tokens,
    "a clean corpus": lambda cache: load_corpus(data(cache))["text_0"][:],
    "rows to encode": lambda cache: open_rows([str(cache.parent / "corpus.txt")]).read(0, 60),
    "a vocabulary": lambda cache: wordpiece_of(data(cache), 60).get_vocab(),
    "evaluation data": lambda cache: [task.pairs for task in load_sts(remote(), ["STS-B dev"])],
}


@pytest.mark.parametrize("use", USES)
def test_what_is_whole_is_used_without_a_lock_or_a_byte_written(cache: Path, use: str) -> None:
    first = USES[use](cache)
    changes: list[str] = []
    with FileEvents([cache], lambda event: changes.append(f"{event.what} {event.path}")):
        assert USES[use](cache) == first
    assert changes == []


@pytest.mark.parametrize("use", USES)
def test_a_disk_that_may_only_be_read_serves_what_is_there_and_refuses_the_rest(
    cache: Path, tmp_path: Path, use: str
) -> None:
    with small_disk(cache, "8m") as mounted:
        if not mounted:
            pytest.skip("this user may not mount")
        first = USES[use](cache)
        gc.collect()  # what is still open for writing would keep it so
        subprocess.run(["mount", "-o", "remount,ro", str(cache)], check=True)
        try_to_write.cache_clear()  # another process
        assert USES[use](cache) == first
        (tmp_path / "corpus.txt").write_text("Something else.\nAnd more.")
        with pytest.raises(InputError, match=r"^The cache .* cannot be written \(read-only file system\); set DIFF"):
            load_corpus(data(cache))


@pytest.mark.parametrize("use", USES)
def test_a_file_system_without_locks_takes_everything(cache: Path, use: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The libraries that write there take locks of their own."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert USES[use](cache) == USES[use](cache)


def test_another_users_cache_serves(cache: Path, tmp_path: Path) -> None:
    if os.getuid():
        pytest.skip("only root becomes another user")
    expected = tokens(cache)
    open_to_all = Path("/tmp", f"cache-{os.getpid()}")
    shutil.copytree(cache.parent, open_to_all, copy_function=shutil.copy2)

    def other_user() -> None:
        os.setuid(65534)
        os.environ["DIFFCSE_CACHE"] = str(open_to_all / "cache")
        assert tokens(open_to_all / "cache") == expected

    try:
        os.chmod(open_to_all, 0o755)
        process = PROCESSES.Process(target=other_user)
        process.start()
        process.join()
        assert process.exitcode == 0
    finally:
        shutil.rmtree(open_to_all)


def empty(file: Path) -> None:
    file.write_bytes(b"")


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size * 2 // 3)


def zero(file: Path) -> None:
    """With the time that it had."""
    state = file.stat()
    with file.open("r+b") as opened:
        opened.seek(128)  # numpy's header
        opened.write(bytes(state.st_size - 128))
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))


DAMAGES = [
    pytest.param(use, pattern, damage, id=f"{damage.__name__} {pattern}", marks=[pytest.mark.slow] if number else [])
    for use, pattern, damages in (
        ("tokens", "tokens-*/facts.json", (empty, cut, os.unlink)),
        ("tokens", "tokens-*/ids_0.npy", (zero, empty, cut, os.unlink)),
        ("tokens", "tokens-*/offsets_0.npy", (cut, zero)),
        ("tokens", "tokens-*/.contents.json", (empty, cut)),
        ("a clean corpus", "corpus-*/cleaned-0/clean.arrow", (zero, empty, cut, os.unlink)),
        ("rows to encode", "rows-*/rows-0/**/*.arrow", (zero, empty, cut, os.unlink)),
        ("a vocabulary", "wordpiece-*.json", (empty, cut)),
        ("evaluation data", "remote/*/dev.tsv", (empty, cut, os.unlink)),
        ("evaluation data", "remote/*/STSB/dev.tsv", (os.unlink,)),
    )
    for number, damage in enumerate(damages)
]


@pytest.mark.parametrize(("use", "pattern", "damage"), DAMAGES)
def test_what_is_damaged_is_made_again_with_one_line_that_says_so(
    cache: Path, caplog: pytest.LogCaptureFixture, use: str, pattern: str, damage: Callable[[Path], object]
) -> None:
    whole = USES[use](cache)
    # of evaluation data there are copies, and links to them
    file = next(file for file in cache.glob(pattern) if pattern.endswith("STSB/dev.tsv") or not file.is_symlink())
    damage(file)
    caplog.clear()
    assert USES[use](cache) == whole
    (said,) = [record.message for record in caplog.records if record.levelno >= logging.ERROR]
    assert said.startswith(f"Made again, because it is damaged: {cache}")
    caplog.clear()
    assert USES[use](cache) == whole
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert not list(cache.rglob(f"*{prepared.UNFINISHED}"))


@pytest.mark.slow
def test_two_ranks_never_train_on_damage(toy_world: Path, tmp_path: Path) -> None:
    def train(run: str) -> tuple[list[dict[str, object]], str]:
        arguments = ["max_steps=2", "log_every=1", f"data.cache_dir={tmp_path / 'cache'}"]
        ended = launch("--recipe", str(toy_world / "toy.yaml"), "--output", str(tmp_path / run), *arguments)
        assert ended.returncode == 0, ended.stdout
        return metrics(tmp_path / run), ended.stdout

    whole, said = train("whole")
    assert "damaged" not in said
    zero(next((tmp_path / "cache").glob("tokens-*/ids_0.npy")))
    again, said = train("again")
    assert again == whole and said.count("Made again, because it is damaged") == 1


def test_the_digest_of_a_file_that_a_crash_has_emptied_is_found_anew(cache: Path) -> None:
    before = tokens(cache)
    for file in (cache / "digests").glob("*[!k]"):
        file.write_bytes(b"")
    assert tokens(cache) == before
    assert len(list(cache.glob("tokens-*[!k]"))) == 1


def test_what_earlier_versions_have_tokenized_is_used_where_it_is_whole(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """They kept no list of contents, but the fingerprint of the tokens."""
    before = tokens(cache)
    (folder,) = cache.glob("tokens-*[!k]")
    (folder / prepared.CONTENTS).unlink()
    shutil.rmtree(next(cache.glob("corpus-*")))
    with monkeypatch.context() as patch:
        patch.setattr(diffcse_scale.text.tokens, "read_corpus", None)
        assert tokens(cache) == before
    zero(folder / "ids_0.npy")
    assert tokens(cache) == before
    assert "its bytes are not those that were written" in caplog.text


def _together(cache: Path, barrier: object, results: multiprocessing.SimpleQueue[object]) -> None:
    """Tokenize while another process does, with locks that are not shared."""
    fcntl.flock = lambda *_: None
    read = diffcse_scale.text.tokens.read_corpus

    def at_once(*arguments: object, **named: object) -> object:
        barrier.wait(30)  # type: ignore[attr-defined]
        found = read(*arguments, **named)  # type: ignore[arg-type]
        barrier.wait(30)  # type: ignore[attr-defined]
        return found

    diffcse_scale.text.tokens.read_corpus = at_once
    results.put(tokens(cache))


@pytest.mark.parametrize("before", ["nothing", "damage"])
def test_machines_that_share_no_locks_make_the_same_at_once(
    cache: Path, tokenizer: PreTrainedTokenizerFast, before: str
) -> None:
    expected = tokenizer(LINES)["input_ids"]
    if before == "damage":
        tokens(cache)
        empty(next(cache.glob("tokens-*/facts.json")))
    results, barrier = PROCESSES.SimpleQueue(), PROCESSES.Barrier(2)
    processes = [PROCESSES.Process(target=_together, args=(cache, barrier, results)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert results.get() == results.get() == expected
    assert len(list(cache.glob("tokens-*[!k]"))) == 1 and not list(cache.rglob(f"*{prepared.UNFINISHED}"))


def test_who_has_waited_looks_for_a_while_before_he_makes_it_again(cache: Path) -> None:
    """What another machine has written may be seen late."""
    place = cache_folder() / "made"
    with shared_lock(place):
        found: list[bytes] = []
        waiting = threading.Thread(
            target=lambda: found.append(prepared.prepared(place, cache, Path.read_bytes, lambda _: 1 / 0))
        )
        waiting.start()
        time.sleep(0.15)
    time.sleep(0.15)
    place.with_name("fresh").write_bytes(b"whole")
    place.with_name("fresh").replace(place)
    waiting.join()
    assert found == [b"whole"]


def test_a_stale_handle_is_asked_for_again_and_told_if_it_stays(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tokens(cache)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    reading = {"only": "read", "reads": True, "named": "facts.json"}
    with FileEvents([cache], fail(1, errno.ESTALE, times=2), **reading):  # type: ignore[arg-type]
        assert tokens(cache) == before
    with (
        FileEvents([cache], fail(1, errno.ESTALE, times=99), **reading),  # type: ignore[arg-type]
        pytest.raises(InputError, match=r"/tokens-\w+ cannot be read \(stale file handle\)"),
    ):
        tokens(cache)


def test_what_killed_processes_have_left_is_removed_when_it_is_surely_theirs(cache: Path) -> None:
    tokens(cache)
    machine, space, _ = prepared._process()
    gone = PROCESSES.Process(target=int)
    gone.start()
    gone.join()
    left = {
        f"x~{machine}~{space}~{gone.pid}~0.unfinished": False,
        f"x~{machine}~{space}~{os.getpid()}~0.unfinished": True,
        f"x~{machine}~1~{gone.pid}~0.unfinished": True,  # another container
        f"x~another~{space}~{gone.pid}~0.unfinished": True,
        f"x~another~{space}~{gone.pid}~1.unfinished": False,  # for a day nothing was written
        "tokens-x.unfinished": False,  # of an earlier version
    }
    for name in left:
        (cache / name).mkdir()
        (cache / name / "file").touch()
        if name.endswith("1.unfinished") or name.startswith("tokens"):
            for path in (cache / name / "file", cache / name):
                os.utime(path, (0, time.time() - 2 * prepared.ABANDONED))
    shutil.rmtree(next(path for path in cache.glob("tokens-*") if not path.suffix))
    tokens(cache)
    assert {name: (cache / name).exists() for name in left} == left


def test_a_cache_that_is_taken_away_meanwhile_is_told_in_one_sentence(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = diffcse_scale.text.tokens._write_column

    def purged(*arguments: object) -> None:
        shutil.rmtree(cache)
        write(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(InputError, match=rf"^The cache {cache} .* was removed\); "):
        patch.setattr(diffcse_scale.text.tokens, "_write_column", purged)
        tokens(cache)
    assert len(tokens(cache)) == 60


def test_a_disk_that_fills_up_is_told_and_kills_nobody(tmp_path: Path) -> None:
    """Who writes to a memory map of a full disk is ended by a signal."""
    with small_disk(tmp_path / "disk", "1m") as mounted:
        if not mounted:
            pytest.skip("this user may not mount")
        disk = tmp_path / "disk"
        with pytest.raises(InputError, match=r"cannot be written \(no space left on device\)"):
            prepared.prepared(disk / "ids", disk, np.load, lambda fresh: new_array(fresh, np.int32, 1 << 20).fill(1))
        assert not list(disk.glob("ids*[!k]"))
