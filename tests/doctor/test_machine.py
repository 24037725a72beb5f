"""What is looked at on a machine: what is here, and what only seems to be."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from diffcse_scale.doctor import machine
from diffcse_scale.doctor.machine import look, volume


def test_this_machine_is_looked_at_whatever_it_has(tmp_path: Path) -> None:
    found = look(tmp_path / "runs", tmp_path / "cache", tmp_path / "models")
    assert found.packages["torch"] == torch.__version__ and found.accelerator == "cpu"
    assert found.cores > 0 and found.memory > 0
    assert found.interfaces["lo"][0] == "127.0.0.1"
    assert found.output.path == tmp_path / "runs" and found.output.writable and found.output.free > 0
    assert not list(tmp_path.iterdir())  # looking makes nothing


def test_the_drivers_version_is_read_from_its_own_line(tmp_path: Path) -> None:
    file = tmp_path / "version"
    assert machine._driver(file) is None
    file.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (root@host)\n")
    assert machine._driver(file) == "580.65.06"


def test_a_folder_that_is_not_there_yet_is_what_it_will_lie_on(tmp_path: Path) -> None:
    later, now = volume(tmp_path / "not" / "yet"), volume(tmp_path)
    assert later.path == tmp_path / "not" / "yet"
    assert (later.system, later.writable) == (now.system, now.writable)
    assert volume(Path("/dev/shm")).system == "tmpfs"


def test_deepspeed_that_cannot_be_imported_is_told_and_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed.accelerator", None)
    accelerator, operators, error = machine._deepspeed()
    assert (accelerator, operators) == (None, ()) and "deepspeed.accelerator" in str(error)
