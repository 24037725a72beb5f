"""docs/bad_input.md is true: what it says was given is given, and answered in its words.

Rows that take a run, a network or a model's damage are given by another test, whose file has the words of the answer.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.bad_inputs import GIVEN

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "bad_input.md").read_text(encoding="utf-8")
LINES = [line for line in PAGE.splitlines() if line.startswith("| ")]
TITLES = re.findall(r"^(\|.+\|)\n\|---", PAGE, re.MULTILINE)
ROWS = dict(line[2:-2].split(" | ", 1) for line in LINES if line not in TITLES)
MADE = [given for given in ROWS if callable(GIVEN.get(given))]
SHARED_WORDS = 4  # of an answer and of the test that gives it, one after another


def test_every_row_is_given() -> None:
    assert set(ROWS) == set(GIVEN)


@pytest.mark.parametrize("given", MADE)
def test_an_answer_is_that_of_the_page(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("DIFFCSE_CACHE", str(tmp_path / "cache"))
    maker = GIVEN[given]
    assert callable(maker)
    answer = maker(tmp_path / "here").replace(f"{tmp_path / 'here'}/", "")
    # dots stand for what is left out
    pattern = ".*".join(map(re.escape, ROWS[given].split("...")))
    assert re.fullmatch(pattern, answer), answer


@pytest.mark.parametrize("given", [given for given in ROWS if given not in MADE])
def test_the_test_that_gives_it_expects_the_words(given: str) -> None:
    test = GIVEN[given]
    assert isinstance(test, str)
    expected = " ".join(re.findall(r"\w+", (ROOT / "tests" / test).read_text(encoding="utf-8")))
    words = re.findall(r"\w+", ROWS[given])
    runs = [" ".join(words[start : start + SHARED_WORDS]) for start in range(len(words) - SHARED_WORDS + 1)]
    assert any(run in expected for run in runs), f"{test} has none of: {ROWS[given]}"
