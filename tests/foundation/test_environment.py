from __future__ import annotations

import getpass
import json
import platform

import torch

from diffcse_scale.foundation.environment import environment


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
