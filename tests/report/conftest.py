"""A toy world, and runs made by hand in it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.support.toy_run import write_run
from tests.support.toy_world import write_toy_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model/`, `corpus.txt`, `pairs.tsv` and `toy.yaml`."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "toy.yaml").write_text(yaml.safe_dump(write_toy_world(folder)))
    return folder


@pytest.fixture(scope="session")
def two_runs(world: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two finished runs that differ in seed and lambda."""
    folder = tmp_path_factory.mktemp("runs")
    other = write_run(world, folder / "other", "seed=2", "objective.rtd_weight=0.25", shift=1.0)
    return [write_run(world, folder / "first"), other]
