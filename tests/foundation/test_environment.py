from __future__ import annotations

import getpass
import json
import platform

import pytest
import torch

from diffcse_scale.foundation.environment import environment, threads_asked_for


def test_the_environment_names_versions_and_machine_and_fits_in_json() -> None:
    found = json.loads(json.dumps(environment()))
    assert found["packages"]["torch"] == torch.__version__
    assert found["python"] == platform.python_version()
    assert found["cores"] >= 1
    assert len(found["devices"]) == torch.cuda.device_count()
    assert found["processor"]


def test_the_environment_names_no_host() -> None:
    text = json.dumps(environment()).split('"')
    assert platform.node() not in text
    assert getpass.getuser() not in text


@pytest.mark.parametrize(
    ("value", "threads"),
    [("8", 8), (" 8 ", 8), ("4,2", 4), ("0", 0), ("", 0), ("abc", 0), ("-1", 0), ("1.5", 0), ("²", 0)],
)
def test_threads_are_what_openmp_takes_from_its_variable(value: str, threads: int) -> None:
    assert threads_asked_for({"OMP_NUM_THREADS": value}) == threads
    assert threads_asked_for({}) == 0
