"""Half-written checkpoints are not used."""

from __future__ import annotations

import json

from diffcse_scale.training.checkpoint import checkpoint_steps, load_checkpoint


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
    assert load_checkpoint(None, tmp_path) is None
