"""What holds the product to the contract notices what breaks it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.fuzz import contract
from tests.fuzz.case import Answer, Case
from tests.fuzz.contract import Worker, judge

CASE = Case((), {"given.txt": b"as it was"})
SENTENCE = "error: Corpus a.txt: no such file.\n"


def fine(case):
    return Answer(0, "", "")


def accepted(case, answer):
    return ""


def wrong(case, answer):
    return "3 rows instead of 4"


def overwrites(case):
    Path("given.txt").write_text("another")
    return fine(case)


def removes(case):
    Path("given.txt").unlink()
    return fine(case)


def refuses(case):
    return Answer(2, "", SENTENCE)


def refuses_twice(case):
    return Answer(2, "", SENTENCE * 2)


def refuses_at_length(case):
    return Answer(2, "", f"error: {'x' * 5_000}\n")


def refuses_with_another_code(case):
    return Answer(1, "", SENTENCE)


def crashes(case):
    return {}["key"]


def takes_memory(case):
    return Answer(0, "", "") if bytearray(700 * 2**20) else None


def dies(case):
    os._exit(3)


def waits(case):
    time.sleep(1000)


def computes(case):
    while True:
        pass


@pytest.mark.parametrize(
    ("act", "right", "problem"),
    [
        (fine, accepted, ""),
        (refuses, accepted, ""),
        (fine, wrong, "3 rows instead of 4"),
        (overwrites, accepted, "given.txt was overwritten"),
        (removes, accepted, "given.txt was overwritten"),
        (refuses_twice, accepted, "no sentence"),
        (refuses_at_length, accepted, "a sentence of 5007 characters"),
        (refuses_with_another_code, accepted, "exit code 1"),
        (crashes, accepted, "KeyError at test_contract.py"),
        (takes_memory, accepted, "took 7"),
    ],
)
def test_an_answer_is_judged(act, right, problem, monkeypatch):
    monkeypatch.chdir("/")  # where it leaves this process
    monkeypatch.setenv("DIFFCSE_CACHE", "")
    found = judge(act, right, CASE).problem
    assert found.startswith(problem) and bool(found) == bool(problem)


@pytest.mark.slow
def test_a_worker_that_dies_or_hangs_breaks_it_and_the_next_case_gets_another(monkeypatch):
    monkeypatch.setattr(contract, "PROCESSOR_SECONDS", 1.0)
    monkeypatch.setattr(contract, "SECONDS", 2.0)
    worker = Worker()
    try:
        assert worker.judge(dies, accepted, CASE).problem == "the process ended with 3"
        assert worker.judge(waits, accepted, CASE).problem == "no answer within the time"
        assert worker.judge(computes, accepted, CASE).problem == "no answer within the time"
        assert worker.judge(fine, accepted, CASE) == (True, "")
    finally:
        worker.close()
