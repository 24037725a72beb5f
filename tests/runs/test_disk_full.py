"""A disk that is full in the middle of a run: one sentence, and afterwards the run goes on as if nothing had been."""

from __future__ import annotations

import pytest

from diffcse_scale.foundation.exit_codes import ExitCode
from tests.support.launch import Ranks, metrics
from tests.support.small_disk import enlarge, small_disk


# the first export does not fit; the first checkpoint does not, though the exports do
@pytest.mark.slow
@pytest.mark.parametrize("size", ["256k", "1m"])
def test_a_full_disk_is_one_sentence_and_the_run_goes_on_when_there_is_room(toy_world, tmp_path, size):
    with small_disk(tmp_path / "disk", size) as mounted:
        if not mounted:
            pytest.skip("this user may not mount a small file system")
        run = tmp_path / "disk" / "run"
        arguments = ("--recipe", str(toy_world / "toy.yaml"), "--output", str(run), "--auto-resume")
        with Ranks(tmp_path / "first", *arguments) as ranks:
            assert ranks.processes[0].wait(120) == ExitCode.MISTAKE, ranks.output()
        said = ranks.outputs[0].read_text()
        assert "error: " in said and "no space left on device" in said.lower() and "Traceback" not in said
        enlarge(tmp_path / "disk", "64m")
        with Ranks(tmp_path / "second", *arguments) as ranks:
            assert ranks.wait() == [ExitCode.FINISHED] * 2, ranks.output()
        rows = metrics(run)
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 13))
