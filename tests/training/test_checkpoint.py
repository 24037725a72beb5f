"""Half-written checkpoints are not used; what cannot be resumed says so."""

from __future__ import annotations

import json

import pytest

from diffcse_scale.errors import InputError
from diffcse_scale.training.checkpoint import checkpoint_steps, load_checkpoint


class Engine:
    """As much of an engine as `load_checkpoint` asks before it loads."""

    def zero_optimization_stage(self):
        return 2


def _checkpoint(folder, name, **state):
    (folder / name).mkdir(parents=True)
    if state:
        (folder / name / "training_state.json").write_text(json.dumps(state))


def test_only_whole_checkpoints_count(tmp_path):
    _checkpoint(tmp_path, "step-00000020", step=20)
    _checkpoint(tmp_path, "step-00000010", step=10)
    _checkpoint(tmp_path, "step-00000030.partial", step=30)
    _checkpoint(tmp_path, "step-00000040")  # killed before its state was written
    assert checkpoint_steps(tmp_path) == [10, 20]
    assert checkpoint_steps(tmp_path / "absent") == []


def test_without_a_checkpoint_there_is_nothing_to_load(tmp_path):
    _checkpoint(tmp_path, "step-00000030.partial", step=30)
    assert load_checkpoint(Engine(), tmp_path) is None


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"world_size": 4, "zero_stage": 2}, "saved with world size 4, this run has 1"),
        ({"world_size": 1, "zero_stage": 3}, "saved with zero stage 3, this run has 2"),
    ],
)
def test_another_shape_is_refused(tmp_path, state, words):
    _checkpoint(tmp_path, "step-00000010", step=10, **state)
    with pytest.raises(InputError, match=words):
        load_checkpoint(Engine(), tmp_path)
