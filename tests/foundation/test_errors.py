"""What one rank finds it sends to all."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest

from diffcse_scale.foundation.errors import InputError, RunEnded, exit_code_of, shown
from diffcse_scale.foundation.exit_codes import ExitCode, Reason


@pytest.mark.parametrize("error", [InputError("a mistake"), RunEnded("stopped", ExitCode.STOPPED)])
def test_an_orderly_end_can_be_sent_to_other_ranks(error):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error) and str(again) == str(error)
    assert getattr(again, "exit_code", None) == getattr(error, "exit_code", None)


def test_exit_codes_are_distinct_and_none_is_a_signals():
    codes = [int(code) for code in ExitCode]
    assert len(set(codes)) == len(codes) and max(codes) < 128


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RunEnded("hung", ExitCode.HUNG), ExitCode.HUNG),
        (InputError("a mistake"), ExitCode.MISTAKE),
        (OSError(28, "No space left on device"), ExitCode.MISTAKE),
        (RuntimeError("safetensors: No space left on device (os error 28)"), ExitCode.MISTAKE),
        (ValueError("a bug"), ExitCode.FAILED),
        (KeyboardInterrupt(), ExitCode.FAILED),
    ],
)
def test_every_end_has_its_code(error, code):
    assert exit_code_of(error) is code


def test_every_exit_code_is_in_the_table_that_users_read():
    page = (Path(__file__).parents[2] / "docs" / "clusters.md").read_text().split("## Exit codes")[1]
    told = {int(cell) for cell in re.findall(r"^\| (\d+) \|", page, flags=re.MULTILINE)}
    assert {int(code) for code in ExitCode} <= told


def test_a_request_leaves_with_a_code_that_is_no_failure():
    assert {reason.exit_code.state for reason in Reason if reason} == {"stopped", None}
    assert max(Reason) is Reason.SUPERSEDED  # nothing may be written then, whatever else was asked


class Broken:
    """A value of a library that cannot even be written."""

    def __repr__(self) -> str:
        return "x" * 10**6


def test_a_value_in_a_message_has_at_most_80_characters_however_large_it_is() -> None:
    bomb: list[object] = ["lol"]
    for _ in range(40):
        bomb = [bomb] * 9  # 9 to the power of 40 words, if written out
    for value in ("a" * 10**6, 10**5000, bomb, {"a": bomb}, list(range(1000)), Broken(), "\udcff" * 500):
        assert len(shown(value)) <= 80
    assert shown("a b") == "'a b'" and shown(7) == "7" and shown([1, "x"]) == "[1, 'x']"
    assert len(str(InputError(f"Corpus {'x' * 5000}: no such file."))) < 120
    assert str(InputError(f"Corpus {'/folder' * 30}: no such file.")).count("/folder") == 30
