"""Shared by all tests: one thread, no network, the device, and where the optional data lies."""

from __future__ import annotations

import hashlib
import os
import signal

from tests.support import devices

# set before torch or transformers are imported: thread counts change the low bits of sums
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.update(devices.VARIABLES)
os.environ["HF_HUB_OFFLINE"] = "1"

from pathlib import Path

import hypothesis
import pytest
import torch
import yaml

if not torch.cuda.is_available():
    # without a GPU the Triton kernels run in Triton's interpreter, which reads this when triton is first imported
    os.environ.setdefault("TRITON_INTERPRET", "1")
torch.set_num_threads(1)

# heard by the tests and by what they start, though under nohup and in the background both are ignored
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)


# the same inputs in every run
hypothesis.settings.register_profile("fixed", derandomize=True)
hypothesis.settings.load_profile("fixed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--sample", metavar="PERCENT:SEED", help="run so many of the tests, drawn by SEED and their names")


def pytest_configure() -> None:
    if refusal := devices.refusal():
        raise pytest.UsageError(refusal)


# files whose tests take longest come first: a worker that began with one of them at the end would leave the other idle
FIRST = ("training/test_chunking", "supervision/test_preemption", "training/test_train", "test_distributed")
FIRST += ("planning/test_command", "generator/test_pretraining", "kernels/test_benchmark", "training/test_nonfinite")
FIRST += ("model/test_compiled", "supervision/test_watchdog", "engine/test_partitioned_loading", "test_start_up")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.partition(".py")[0].removeprefix("tests/").startswith(FIRST))
    if devices.ON_GPU:
        for item in items:
            if item.get_closest_marker("device"):
                item.add_marker("gpu")
    if config.getoption("--sample"):
        percent, _, seed = config.getoption("--sample").partition(":")
        left_out = [
            item
            for item in items
            if int(hashlib.sha256(f"{seed} {item.nodeid}".encode()).hexdigest(), 16) % 100 >= int(percent)
        ]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


def _folder(variable: str) -> Path:
    if variable not in os.environ:
        pytest.skip(f"{variable} is not set: it names a folder of real data that the project does not carry")
    return Path(os.environ[variable])


@pytest.fixture
def data_folder() -> Path:
    """Real corpora and evaluation sets."""
    return _folder("DIFFCSE_DATA")


@pytest.fixture
def models_folder() -> Path:
    """Small pretrained models."""
    return _folder("DIFFCSE_MODELS")


@pytest.fixture(scope="session")
def toy_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model/`, `corpus.txt`, `pairs.tsv` and `toy.yaml`."""
    from tests.support.toy_world import write_toy_world

    folder = tmp_path_factory.mktemp("toy")
    (folder / "toy.yaml").write_text(yaml.safe_dump(write_toy_world(folder)))
    return folder
