"""What a launcher tells its processes, read before any of them waits for another."""

from __future__ import annotations

import pytest

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.foundation.launched import check_launched, speaks

WHOLE = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize("environ", [{}, WHOLE, {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "x"}], ids=len)
def test_what_launchers_set_is_read(environ: dict[str, str]) -> None:
    check_launched(environ)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"RANK": "x"}, "RANK is 'x', which is not a whole number"),
        ({"RANK": "-1"}, "RANK is '-1', which"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE is '', which"),
        ({"LOCAL_RANK": "\u00b2"}, "LOCAL_RANK is"),
        ({"RANK": "2"}, "RANK is 2 of WORLD_SIZE 2; ranks count from 0 to 1"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT is '70000'; give one between"),
        ({"MASTER_PORT": None, "MASTER_ADDR": None}, "RANK is set, but MASTER_ADDR, MASTER_PORT is not"),
        ({"WORLD_SIZE": None}, "RANK is set, but WORLD_SIZE is not"),
        ({"DIFFCSE_WORLD_SIZE": "two"}, "DIFFCSE_WORLD_SIZE is 'two'"),
    ],
    ids=str,
)
def test_what_no_launcher_sets_is_told(change: dict[str, str | None], words: str) -> None:
    environ = {name: value for name, value in {**WHOLE, **change}.items() if value is not None}
    with pytest.raises(InputError) as error:
        check_launched(environ)
    assert words in str(error.value)


def test_one_process_of_a_machine_speaks() -> None:
    assert (
        speaks({}) and speaks({"LOCAL_RANK": "0"}) and speaks({"LOCAL_RANK": "x"}) and not speaks({"LOCAL_RANK": "3"})
    )
