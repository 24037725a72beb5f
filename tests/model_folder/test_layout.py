"""Where a model is: in its own folder or in that of its run; what is said if it is in neither."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffcse_scale.foundation import run_files
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.foundation.model_files import MODULES_FILE
from diffcse_scale.model_folder.layout import model_folder, run_of


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that has begun."""
    (tmp_path / run_files.RECIPE).touch()
    (tmp_path / run_files.MODEL).mkdir()
    return tmp_path


def test_the_model_of_a_run_is_in_a_folder_of_it(run: Path) -> None:
    model = run / run_files.MODEL
    (model / MODULES_FILE).touch()
    assert model_folder(run) == model_folder(model) == model
    assert run_of(run) == run_of(model) == run and run_of(run.parent) is None


def test_a_run_without_a_model_has_not_finished_or_has_lost_it(run: Path) -> None:
    with pytest.raises(InputError, match=rf"The run in {run} has no model yet; `diffcse-scale status {run}` shows how"):
        model_folder(run)
    (run / run_files.RESULT).touch()
    lost = rf"The run in {run} has finished, but {run / run_files.MODEL} holds no model; restore it"
    with pytest.raises(InputError, match=lost):
        model_folder(run)


def test_what_holds_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no model: neither modules\.json nor config\.json is there"):
        model_folder(tmp_path)
    with pytest.raises(InputError, match=r"Model folder .*/absent does not exist; models are not downloaded here"):
        model_folder(tmp_path / "absent")
