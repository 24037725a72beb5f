"""The quickstart keeps its promise: a better encoder than the untrained one, and a discriminator that detects."""

from __future__ import annotations

import json

import pytest

from tests.support.launch import launch, metrics


@pytest.mark.slow
def test_spearman_rises_and_replaced_tokens_are_detected(tmp_path):
    run = tmp_path / "run"
    launched = launch("--recipe", "quickstart", "--output", str(run), ranks=1)
    assert launched.returncode == 0, launched.stdout
    result = json.loads((run / "result.json").read_text())
    # before: the better of cls and mean pooling of the untrained backbone
    assert result["best"]["dev_spearman"] > max(result["before"].values())
    assert result["dev_rtd_replaced"] >= 5000
    assert result["dev_rtd_auroc"] > 0.8 and result["dev_rtd_skill"] > 0.1
    rows = metrics(run)
    assert all(0 < row["gradient_share"] < 1 and abs(row["gradient_cosine"]) <= 1 for row in rows if "loss" in row)
    evaluations = [row for row in rows if "dev_spearman" in row]
    assert evaluations[0]["dev_rtd_auroc"] < evaluations[-1]["dev_rtd_auroc"]
    assert "discriminator used z" in launched.stdout
    assert (run / "curves.png").is_file()
    assert "diffcse-scale evaluate" in launched.stdout  # which commands come next
