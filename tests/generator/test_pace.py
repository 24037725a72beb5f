"""The estimate of a training's length, held against a clock that takes one second for 100 tokens."""

from __future__ import annotations

import time

import pytest

from diffcse_scale.generator.pace import Pace, in_words

USUAL = 1_000  # tokens of a step


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds, in a list of one."""
    now = [50.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def train(pace: Pace, clock: list[float], lengths: list[int]) -> list[str | None]:
    """Train on steps of these tokens, of which the first takes a minute longer; what is said after each."""
    said = []
    for number, tokens in enumerate(lengths):
        pace.add(tokens)
        clock[0] += tokens / 100 + (60 if number == 0 else 0)
        said.append(pace.estimate(steps=720))
    return said


def test_long_sentences_at_the_beginning_do_not_mislead(clock: list[float]) -> None:
    pace = Pace(USUAL)
    said = train(pace, clock, [4_000 - 100 * step for step in range(12)])
    assert said[:9] == [None] * 9 and said[10:] == [None] * 2, "it is said once"
    assert said[9] is not None and said[9].startswith(
        "The 720 remaining steps take about 2 h 0 min here; the end is at about "
    )
    assert pace.left(36) == pytest.approx(360)


def test_the_seconds_before_an_interruption_count(clock: list[float]) -> None:
    pace = Pace(USUAL, spent=1_000)
    train(pace, clock, [1_000] * 3)
    assert pace.seconds() == pytest.approx(1_090) and pace.left(5) is None


@pytest.mark.parametrize(
    ("seconds", "words"), [(7_810, "2 h 10 min"), (3_599, "1 h 0 min"), (1_499, "25 min"), (42.4, "42 s")]
)
def test_a_duration_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
