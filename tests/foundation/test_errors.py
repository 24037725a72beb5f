"""What one rank finds it sends to all."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest

from diffcse_scale.foundation.errors import InputError, RunEnded, exit_code_of, quoted
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
        (RunEnded("a user's hook", 74), ExitCode.STOPPED),
        (InputError("a mistake"), ExitCode.MISTAKE),
        (OSError(28, "No space left on device"), ExitCode.MISTAKE),
        (RuntimeError("safetensors: No space left on device (os error 28)"), ExitCode.MISTAKE),
        (ValueError("a bug"), ExitCode.FAILED),
        (KeyboardInterrupt(), ExitCode.FAILED),
    ],
)
def test_every_end_has_its_code(error, code):
    assert exit_code_of(error) is code


def test_a_run_cannot_end_with_a_number_that_is_no_exit_code():
    with pytest.raises(ValueError, match="3 is not a valid ExitCode"):
        RunEnded("a user's hook", 3)


def test_every_exit_code_is_in_the_table_that_users_read():
    page = (Path(__file__).parents[2] / "docs" / "clusters.md").read_text().split("## Exit codes")[1]
    told = {int(cell) for cell in re.findall(r"^\| (\d+) \|", page, flags=re.MULTILINE)}
    assert {int(code) for code in ExitCode} <= told


def test_a_request_leaves_with_a_code_that_is_no_failure():
    assert {reason.exit_code.state for reason in Reason if reason} == {"stopped", None}
    assert max(Reason) is Reason.SUPERSEDED  # nothing may be written then, whatever else was asked


def test_a_value_in_a_message_is_short_and_on_one_line():
    class Broken:
        def __repr__(self):
            raise RuntimeError

    level = ["x"] * 9
    for _ in range(9):
        level = [level] * 9  # 9 ** 10 values, written out
    cycle = []
    cycle.append(cycle)
    for value in ("x" * 10**6, b"x" * 10**6, 16**5000, level, cycle, "a\nb\x1b[2J", "\ud800", Broken(), [Broken()]):
        assert len(quoted(value)) <= 80 and quoted(value).isprintable()
    assert quoted("caf\u00e9") == repr("caf\u00e9") and quoted([1, 2.5, None]) == "[1, 2.5, None]"
    assert quoted("x" * 100) == "'" + "x" * 76 + "..."
    assert len(str(InputError(f"Corpus {'x' * 5000}: no such file."))) < 120
    assert str(InputError(f"Corpus {'/folder' * 30}: no such file.")).count("/folder") == 30
