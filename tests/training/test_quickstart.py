"""The quickstart keeps its promise: a better encoder than the untrained one, and a discriminator that detects."""

from __future__ import annotations

import json

import pytest

from tests.support.launch import launch


@pytest.mark.slow
def test_spearman_rises_and_replaced_tokens_are_detected(tmp_path):
    run = tmp_path / "run"
    launched = launch("--recipe", "quickstart", "--output", str(run), ranks=1)
    assert launched.returncode == 0, launched.stdout
    result = json.loads((run / "result.json").read_text())
    # before: the better of cls and mean pooling of the untrained backbone
    assert result["best"]["dev_spearman"] > max(result["before"].values())
    assert result["rtd_replaced_tokens"] >= 5000
    assert result["rtd_balanced_accuracy"] > 0.55
    assert (run / "curves.png").is_file()
    assert "diffcse-scale evaluate" in launched.stdout  # which commands come next
