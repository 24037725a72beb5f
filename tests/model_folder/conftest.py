"""What is written, checked and read back."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.hand_made_run import write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run with mean pooling."""
    return write_run(tmp_path / "mine")
