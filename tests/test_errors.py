"""What one rank finds it sends to all."""

from __future__ import annotations

import pickle

import pytest

from diffcse_scale.errors import InputError, RunEnded
from diffcse_scale.exit_codes import ExitCode


@pytest.mark.parametrize("error", [InputError("a mistake"), RunEnded("stopped", ExitCode.STOPPED)])
def test_an_orderly_end_can_be_sent_to_other_ranks(error):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error) and str(again) == str(error)
    assert getattr(again, "exit_code", None) == getattr(error, "exit_code", None)


def test_exit_codes_are_distinct_and_none_is_a_signals():
    codes = [int(code) for code in ExitCode]
    assert len(set(codes)) == len(codes) and max(codes) < 128
